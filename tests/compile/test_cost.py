"""Work by formulas against XLA's own count of unrolled programs without kernels."""

import dataclasses

import jax
import numpy as np
import pytest
from small import CONFIG, random_groups

from rmsd_jax.compile import cost
from rmsd_jax.core import packed
from rmsd_jax.core.groups import Bucket
from rmsd_jax.method import losses
from rmsd_jax.models.config import PRESETS
from rmsd_jax.models.student import Qwen3VL

# Widths at which the matrix products, which the formulas count, are nearly everything.
C = dataclasses.replace(
  CONFIG,
  text=dataclasses.replace(CONFIG.text, layers=3, width=256, mlp=512, heads=8, head=32, vocab=1000,
                           sections=(8, 4, 4)),
  vision=dataclasses.replace(CONFIG.vision, width=128, mlp=256, out=256),
)  # fmt: skip
MODEL = Qwen3VL(C, unroll=True, attention="split")
B, R, BUCKET = 2, 3, Bucket(64, 32, 3, 24)
GROUPS = random_groups(B=B, R=R, P=64, T=32, F=3, S=24)


def counted(f, *arguments) -> float:
  return jax.jit(f).lower(*arguments).compile().cost_analysis()["flops"]


def scores(model, params, groups, visual):
  rows = packed.padded(groups)
  hidden_XWD = losses.predictors(model.hidden(params, rows, visual), rows)
  return losses.token_logps(hidden_XWD, model.unembedding(params), rows.targets_XW, 1.0, 96).sum()


@pytest.fixture(scope="module")
def abstract():
  visual = jax.eval_shape(MODEL.encode, MODEL.abstract(), GROUPS)
  return MODEL.abstract(), GROUPS, visual


def size_of(B, bucket, R):
  """Of B groups whose responses are all full, laid out unpacked."""
  P, T = bucket.prompt, bucket.response
  pairs = cost.pairs(np.full(B, P), np.full((B, R), T))
  return cost.Size(B * (P + R * T), B * R * T, pairs, R * T)


SIZE = size_of(B, BUCKET, R)


def full_blocks(work: cost.Work) -> float:
  """The formula counts pairs that see each other; plain XLA computes whole blocks: of a response
  its own and the one before."""
  P, T = BUCKET.prompt, BUCKET.response
  computed = B * (P**2 + R * T * (P + 2 * T))
  return work._replace(attention=work.attention * computed / SIZE.pairs).total


def test_a_forward_pass(abstract):
  formula = full_blocks(cost.forward(C, SIZE, True))
  found = counted(lambda *a: scores(MODEL, *a), *abstract)
  assert formula <= found <= 1.1 * formula


def test_a_gradient_is_three_forward_passes_and_the_logits_again(abstract):
  one = cost.forward(C, SIZE, True)
  formula = full_blocks(one.times(3).plus(cost.Work(logits=one.logits)))
  found = counted(jax.grad(lambda *a: scores(MODEL, *a)), *abstract)
  assert 0.97 * formula <= found <= 1.15 * formula


def test_the_vision_tower(abstract):
  params = abstract[0]
  work = lambda depth: (
    cost.vision(dataclasses.replace(C.vision, depth=depth), B * BUCKET.frames, BUCKET.patches).total
  )
  # XLA counts one turn of each loop over blocks: of DeepStack at (0, 1, 3), one of the last two.
  formula = work(C.vision.depth - 1)
  assert 0.97 * formula <= counted(MODEL.encode, params, GROUPS) <= 1.15 * formula


def test_figures_of_the_4b_model():
  """Against the sizes in its public config: 4.02e9 weights in the decoder's layers and table."""
  t = PRESETS["4b"].text
  assert t.layers * cost.layer_weights(t) + t.vocab * t.width == pytest.approx(4.02e9, rel=0.01)
  bucket = Bucket(2304, 1024, 8, 1008)
  size = size_of(1, bucket, 8)
  one = cost.forward(PRESETS["4b"], size, True)
  assert one.linear == pytest.approx(76e12, rel=0.01)  # 10,496 tokens
  assert one.logits == pytest.approx(6.4e12, rel=0.01)
  step = cost.policy(PRESETS["4b"], size, remat="all", chunk=2048)
  assert step.total > 4.5 * (one.linear + one.attention)


def test_what_the_backward_pass_computes_again():
  """Layers with remat; logits where a row has more than one chunk of them."""
  size, c = size_of(1, Bucket(128, 16, 1, 4), 8), PRESETS["2b"]
  step = lambda remat, chunk: cost.policy(c, size, remat, chunk)
  one, least = cost.forward(c, size, True), step("none", 128)
  assert least.total == pytest.approx(4 * one.total)
  assert step("none", 127).total - least.total == pytest.approx(one.logits)
  assert step("all", 128).total - least.total == pytest.approx(one.linear + one.attention)


def test_decoding_goes_on_with_the_rows_that_are_left():
  """By hand: two shards of 4 responses, loops of 4 and 2 rows, windows of 3 of 8 places."""
  length_ZX = np.array([[1, 2, 6, 8], [3, 3, 3, 4]])
  found = cost.turns(length_ZX, [4, 2], 3, 8)
  # More than two of a shard are left behind tokens 1 and 2 (the second shard), one behind 6.
  rows, places = [4, 4, 2, 2, 2, 2, 2], [3, 3, 3, 6, 6, 6, 8]
  assert found == [cost.Turn(*pair) for pair in zip(rows, places, strict=True)]


def test_traffic_of_turns_is_that_of_the_program_with_their_loops():
  """By hand: loops of 4 and 2 rows, windows of 3 of 8 places; a program of other loops has none."""
  every = cost.every_turn([4, 2], 3, 8)
  assert every == [[cost.Turn(n, places) for places in (3, 6, 8)] for n in (4, 2)]
  found = [[{"fusion": 5, "copy": i}, {"fusion": 6 + i}, {"copy": 7 + i}] for i in (0, 10)]
  traffic = cost.traffic_of(every, found)
  assert [traffic[turn] for turn in every[0] + every[1]] == [5, 6, 7, 15, 16, 17]
  assert cost.traffic_of(every, found[:1]) == cost.traffic_of(every[:1], found) == {}
  assert cost.traffic_of(every, [found[0], found[1][:2]]) == {}


def test_decoding_reads_prompts_once_a_group_and_of_each_row_its_places():
  text, decoding = C.text, [cost.Turn(8, 16), cost.Turn(4, 32)]
  caches = 2 * 2 * 3 * 2 * 32 * (2 * 100 + 8 * 16 + 2 * 100 + 4 * 32)
  scores = 3 * 4 * 3 * 8 * (8 * 100 + 8 * 16 + 8 * 100 + 4 * 32)
  assert cost.decode_bytes(text, 100, 2, decoding, False) == caches + scores
  of_prompts = 3 * 4 * 3 * 8 * 2 * 8 * 100
  assert cost.decode_bytes(text, 100, 2, decoding, True) == caches + scores - of_prompts
  one = cost.rollout(C, 2, Bucket(100, 32, 1, 4), 1, decoding)
  more = cost.rollout(C, 2, Bucket(100, 32, 1, 4), 1, [*decoding, cost.Turn(4, 32)])
  assert more.linear - one.linear == 2 * 4 * text.layers * cost.layer_weights(text)
  assert more.logits / one.logits == 16 / 12
