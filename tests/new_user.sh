#!/usr/bin/env bash
# A new user's path: own prompts and clips, a teacher behind an endpoint, both stages, scores, a page,
# and a student that others can load. tests/commands/test_new_user.py runs it at a tiny size.
#
#   URL=http://host:8000/v1 STUDENT=FOLDER CONFIGS=configs tests/new_user.sh DIR
#
# DIR holds prompts.jsonl (train and test), its clips, my_tasks.py with a task of one's own, my_rewards.py
# with a reward term, and ask.py. STUDENT is a Hugging Face folder of Qwen3-VL. Sizes are for 48 x 48 clips and a million parameters;
# for real ones take configs/qwen3vl_4b_*.py and the sizes of the README.
set -euo pipefail
cd "$1"
# 1. What the prompts are worth, and what the teacher will cost.
python -m rmsd_jax.pool check prompts.jsonl --tasks my_tasks.py
python -m rmsd_jax.pool collect --prompts prompts.jsonl --out answered.jsonl --tasks my_tasks.py \
  --model teacher --base-url "$URL" --frames 6 --samples 4 --dry-run
python -m rmsd_jax.pool collect --prompts prompts.jsonl --out answered.jsonl --tasks my_tasks.py \
  --model teacher --base-url "$URL" --frames 6 --samples 4
python -m rmsd_jax.pool report answered.jsonl --tasks my_tasks.py --html teacher

# 2. The pool that the trainers read.
MEDIA="--frames 6 --video-pixels 1,100000"
python -m rmsd_jax.pool plan --jsonl answered.jsonl --tokenizer "$STUDENT" $MEDIA \
  --tasks my_tasks.py
python -m rmsd_jax.pool build --jsonl answered.jsonl --tokenizer "$STUDENT" $MEDIA \
  --tasks my_tasks.py --fit 48 --out pool
python -m rmsd_jax.pool check pool --tasks my_tasks.py

# 3. Both stages; in the second looks at held-out prompts, and some rollouts shown.
RUN="--config.model.folder=$STUDENT --config.model.dtype=float32 --config.model.attention=split
  --config.data.pool=pool --config.data.workers=0 --config.tasks.module=my_tasks.py
  --config.batch=8 --config.steps=4 --config.save_every=2 --config.log_every=1
  --config.evaluate.samples=2"
python -m rmsd_jax.train_sft --config="$CONFIGS/default.py" --workdir=runs/sft $RUN
python -m rmsd_jax.train_rl --config="$CONFIGS/default.py" --workdir=runs/rl $RUN \
  --config.reward.module=my_rewards.py --config.reward.custom=brevity=0.1 \
  --config.init_from=runs/sft --config.discriminator.warmup_steps=1 --config.samples.every=2 \
  --config.rollouts.samples=4 --config.discriminator.probe_every=0 \
  --config.evaluate.every=2 --config.evaluate.split=test

# 4. Scores, a page, the student as others load it, and a question to it.
python -m rmsd_jax.evaluate --config="$CONFIGS/default.py" --workdir=runs/rl $RUN \
  --config.data.split=test
python -m rmsd_jax.report runs
python -m rmsd_jax.convert export --workdir runs/rl --base "$STUDENT" --out student
python ask.py
