"""Every key of every command, with its unit and meaning. The other configs change values only.

    python -m rmsd_jax.train_sft --config=configs/X.py --workdir=DIR --config.data.pool=POOL ...

Marks: [paper] R-MSD, arXiv 2603.11423; [GAD] arXiv 2511.10643, the method it builds on; [ours] our
decision, nothing is published.
"""

from ml_collections import ConfigDict

# Keys that change how a run is done, not what it computes: they may differ on resuming.
OPERATIONAL = (
  "mesh",
  "row_tokens",
  "logit_chunk",
  "model.attention",
  "model.remat",
  "model.unroll",
  "rollouts.gather",
  "rollouts.tensor",
  "rollouts.pieces",
  "data.pool",
  "data.workers",
  "data.prefetch",
  "evaluate",
  "samples",
  "compile",
  "discriminator.probe_every",
  "best_metric",
  "log_every",
  "writer",
  "profile",
  "max_skipped",
  "policy.max_kl",
  "save_every",
  "keep",
  "reward.audit",
  "reward.module",  # its contents are compared, not its place
  "tasks.module",
  "operational",
)


def get_config() -> ConfigDict:
  c = ConfigDict()
  c.seed = 0  # of data order, matching, sampling and new weights
  c.init_from = ""  # work folder of an earlier run whose student to start from; "": model.folder
  c.trained = ("text/.*",)  # names of the weights that learn; the rest is frozen and shared

  _model_and_data(c)

  c.batch = 128  # prompts per step
  # Prompts and responses are packed into rows of tokens (rmsd_jax.core.packed). Tokens of a shard's
  # rows, padding included, whose gradient is computed at a time: it determines the peak memory.
  c.row_tokens = 24_576
  c.steps = 390  # updates in all; 50,000 prompts / 128 [paper]
  # Response tokens of each row whose logits exist at a time: computed anew for the backward pass,
  # or kept for it where a row has no more than that.
  c.logit_chunk = 2_048

  c.optim = _optim(learning_rate=2e-6, schedule="cosine", clip_norm=1.0)  # of the student

  _method(c)

  c.evaluate = ConfigDict()
  c.evaluate.name = ""  # results go to WORKDIR/evaluate/NAME.json; "": the split's name
  c.evaluate.greedy = True  # the likeliest reply to each prompt; False: sampled ones alone
  c.evaluate.samples = 8  # replies sampled per prompt at rollouts.temperature, for pass@k; 0: none
  # Of a run of stage 2: score what is sampled, and the teacher's responses, with its discriminator.
  c.evaluate.discriminator = False
  c.evaluate.pass_above = 0.5  # a response of this quality or more passes, for pass@k
  # Held-out looks inside training, on prompts that it never sees: greedy and `samples` sampled
  # replies; the best checkpoint follows them unless best_metric says otherwise.
  c.evaluate.every = 0  # steps between two; 0: none
  c.evaluate.split = ""  # of the pool, such as "test"; "": the clips of data.held_out
  c.evaluate.prompts = 64  # at most so many, drawn once for all
  c.evaluate.patience = 0  # looks in a row without a gain after which a run ends; 0: never
  # Stage 2 ends with status 2 where the held-out score falls below the best look's interval while
  # the reward rises.
  c.evaluate.stop_hacking = True

  c.compile = ConfigDict()  # what rmsd_jax.compile plans for
  c.compile.stage = "rl"  # "sft" or "rl"
  c.compile.topology = "v5e:4x4"  # chips, e.g. v5p:2x2x4, v6e:4x4, tpu7x:2x2x1
  c.compile.bucket = (2304, 1024, 8, 1008)  # P, T, F, S of the pool's largest bucket

  c.samples = ConfigDict()  # stage 2: rollouts that WORKDIR/samples.jsonl and TensorBoard show
  c.samples.every = 50  # steps between two such steps, behind the warm-up; 0: none
  c.samples.prompts = 4  # of the step, with all their rollouts

  c.log_every = 10  # steps
  c.writer = (
    ""  # a further log: "wandb", or FILE.py:NAME of your own (rmsd_jax/training/trackers.py)
  )
  # Steps to trace, FIRST:COUNT, such as "10:3": TensorBoard's profile plugin shows WORKDIR/tb.
  c.profile = ""
  c.max_skipped = 20  # updates in a row without a finite gradient after which a run stops
  c.save_every = 200  # steps
  c.keep = 2  # checkpoints kept
  c.best_metric = ""  # of the log, such as rollout/quality or -loss: its best saved step is kept

  c.operational = OPERATIONAL
  return c


def _model_and_data(c: ConfigDict) -> None:
  c.model = ConfigDict()
  c.model.folder = (
    ""  # Hugging Face Qwen3-VL folder: config, tokenizer, weights; for rmsd_jax.compile also a size
  )
  c.model.dtype = "bfloat16"  # of activations; weights stay fp32
  c.model.remat = "all"  # what the backward pass computes again of each layer: "all" (least memory,
  # a third more work), all but its "products" with weights, or "none"
  c.model.unroll = False  # write layers out instead of looping; only for tiny models on CPU
  c.model.attention = "auto"  # splash on TPU, cudnn on GPU, split on CPU; or one of these, dense

  c.mesh = ConfigDict()  # devices per axis; they multiply to the device count, one may be -1
  c.mesh.data = 1
  c.mesh.fsdp = -1
  c.mesh.tensor = 1

  c.data = ConfigDict()
  c.data.pool = ""  # folder written by `rmsd_jax.pool build`
  c.data.split = "train"
  c.data.responses = 4  # K, teacher responses used per prompt [paper]
  # The place of the first of them among a prompt's responses, which go round: where a pool has more
  # than K, runs with another one see other samples of the teacher.
  c.data.first_response = 0
  c.data.tasks = ()  # only these tasks; empty: all
  c.data.blind = False  # every frame mid-grey: the control of a model that cannot see
  # What the order of prompts follows from: the seed and the "stage", so that stage 2 does not see
  # them as stage 1 did; or the "seed" alone, as in runs of before. A second run of a stage, such
  # as continued SFT, wants another seed.
  c.data.draws = "stage"
  c.data.held_out = 0.0  # share of the clips that training never sees, for held-out looks
  # Share of stage 1's batches that is plain conversations of the pool (records of the task "chat"),
  # so that the student does not forget how to talk; they are used nowhere else.
  c.data.chat_share = 0.0
  c.data.limit = 0  # only the first prompts of the split; 0: all
  c.data.workers = 4  # processes that prepare batches; 0: in threads of this process
  c.data.prefetch = 2  # batches prepared ahead by each worker


def _method(c: ConfigDict) -> None:
  c.tasks = ConfigDict()  # as the pool was built: `rmsd_jax.pool build --eps-abs ..`
  c.tasks.module = ""  # Python file with tasks of your own (recipe in docs/code.md); "": none
  c.tasks.eps_abs = 0.0  # "numerical": an answer may differ by that much,
  c.tasks.eps_rel = 0.0  # or by that share of the truth; with both 0 it is rounded to 2 decimals
  # R_task from which a response is valid [ours]: 1 wants a box for each second of the truth; with
  # 0.5 the right form is enough, and the metric alone counts the missing seconds.
  c.tasks.valid_from = 1.0
  # "strict", or "lenient": answers as models write them, such as **B**, 12 cm, "from 2s to 4s"; see
  # docs/pool.md for what counts in each.
  c.tasks.reading = "strict"

  c.supervision = ConfigDict()  # which teacher responses teach
  c.supervision.tau = (
    0.3  # closed-ended responses of lower quality are dropped; 0 keeps all [paper]
  )
  # By their metric, or "uniform": all alike [paper]; or by their "agreement" with each other, which
  # needs no truth [ours].
  c.supervision.closed = "ground_truth"
  c.supervision.open_ended = "uniform"  # valid ones alike, or "ground_truth": by ROUGE-L [paper]
  # Stage 1: "best", "random_survivor", "random", "first"; or "near", of the best ones that with the
  # most tokens among the student's near_top likeliest, for which it scores all K at each step
  c.supervision.target = "best"
  c.supervision.near_top = 10
  c.supervision.match_by_quality = True  # stage 2: pair rollouts with teachers with p ~ quality
  c.supervision.loss_by_quality = True  # stage 2: weigh the pair loss by the teacher's quality
  c.supervision.teachers = "alike"  # or "weighed", "best": see rmsd_jax.method.reliability [ours]

  c.rollouts = ConfigDict()
  c.rollouts.samples = 8  # N, responses sampled per prompt
  c.rollouts.temperature = 0.8  # [GAD]
  c.rollouts.top_p = 1.0
  c.rollouts.top_k = 0  # 0: all tokens
  c.rollouts.gather = (
    True  # weights whole on each device while sampling: see rmsd_jax.rollouts.generate
  )
  # Devices that decode together, heads and weights split among them; 0: as mesh.tensor.
  c.rollouts.tensor = 0
  # Parts of their prompts that are answered one after another, where memory is short.
  c.rollouts.pieces = 1

  c.reward = ConfigDict()  # weights of the composite reward
  c.reward.discriminator = 0.4  # alpha; 0 leaves the discriminator out of the run
  c.reward.outer = 0.1  # beta, think and answer tags
  c.reward.inner = 0.1  # eta, the task's own format (R_task)
  c.reward.content = 0.4  # delta, the metric against the ground truth (closed-ended tasks)
  c.reward.module = ""  # Python file with terms of your own (recipe in docs/code.md); "": none
  c.reward.custom = ""  # their weights, such as "brevity=0.2,polite=0.1"; without one: logged only
  # Refuse weights under which saying nothing pays more than an honest wrong answer.
  c.reward.audit = True
  c.reward.score = "raw"  # the discriminator's term: "raw" logit, "sigmoid", "standardised" [ours]
  c.reward.clip = 0.0  # bound of the logit before that, 10 in PRISM (arXiv 2604.28123); 0: none
  c.reward.per_log_length = 0.0  # what the logit loses by log(1 + tokens) [PRISM]
  c.reward.gate = False  # closed-ended: no format reward where content scores 0 [ours]
  c.reward.dead_below = 1e-4  # a group whose rewards span less has no advantages [ours]

  c.reward.right_from = 0.5  # content score from which a rollout is right, for "gated" and AUCs
  _policy(c)
  _discriminator(c)


def _policy(c: ConfigDict) -> None:
  c.policy = ConfigDict()
  # Normalised inside a group: the "total" reward; each term by itself, "separate"; or rules and
  # discriminator, the latter counting for right rollouts alone, "gated" [PRISM].
  c.policy.advantage = "total"
  c.policy.format_penalty = 0.0  # minus this is the advantage of a wrong outer format [PRISM: 1.5]
  c.policy.scale = "group"  # advantages over the group's s.d. (GRPO), its "task"'s, or "none"
  c.policy.scale_decay = 0.99  # of the running s.d. of each task, per step
  c.policy.clip = 0.2  # of the importance ratio, which is 1 with one update per batch [GAD]
  c.policy.kl = 0.001  # gamma, weight of KL(student || reference) per token [GAD]
  # The reference: "" is the student of stage 1; or the Hugging Face folder of an open teacher with
  # the same tokenizer, of any size. With kl=1, kl_estimator="k2" and rewards of 0 that is on-policy
  # distillation; with rewards, both (docs/training.md).
  c.policy.reference = ""
  # "k3" [GAD]; "k2", whose gradient is the KL's own; "k1", whose expected gradient is 0: to log it;
  # or no estimate but "jsd": the divergence over the whole vocabulary, as GKD has it
  c.policy.kl_estimator = "k3"
  c.policy.jsd_beta = 0.5  # of "jsd": 0 is KL(reference || student), 1 is KL(student || reference)
  # Dead groups keep their KL term [ours]; a step of dead groups alone leaves the student as it is.
  c.policy.kl_of_dead = True
  c.policy.max_kl = 0.0  # nats per token, of a logged step, above which a run stops; 0: never
  c.policy.mask_cut_off = False  # rollouts cut off at T count neither in their group nor the loss


def _discriminator(c: ConfigDict) -> None:
  c.discriminator = ConfigDict()
  c.discriminator.optim = _optim(learning_rate=1e-6, schedule="constant", clip_norm=0.2)
  c.discriminator.zero_head = False  # its head begins at 0, not drawn [ours]
  c.discriminator.score_l2 = 0.0  # of the mean squared score in its loss, 0.001 in PRISM
  c.discriminator.warmup_steps = 10  # first steps, in which no reward is paid [GAD: an epoch]
  # The student goes on with stage 1 in the warm-up, as in GAD's; else it waits [ours].
  c.discriminator.joint_warmup = False
  c.discriminator.pause_above = 1.0  # no update while its running accuracy is higher [ours]
  c.discriminator.probe_every = 50  # steps between scorings of fixed pairs of step 0; 0: none
  c.discriminator.frozen_after = 0  # it stops learning after this step; 0: never (ablation)


def _optim(learning_rate: float, schedule: str, clip_norm: float) -> ConfigDict:
  """Betas and decay of [GAD]."""
  o = ConfigDict()
  o.name = "adamw"  # of OPTIMIZERS in rmsd_jax/training/optim.py
  o.learning_rate = learning_rate
  o.warmup_share = 0.02  # of the steps, linear from 0
  o.schedule = schedule  # after the warm-up: "cosine" to 0, or "constant"
  o.b1 = 0.9
  o.b2 = 0.999
  o.weight_decay = 0.01  # not on norms and biases
  o.clip_norm = clip_norm  # of the gradient's global norm
  o.moment_dtype = "float32"  # of the first moment; "bfloat16" saves memory
  return o
