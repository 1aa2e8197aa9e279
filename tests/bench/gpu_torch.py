"""Parts of tests.bench.on_gpu that run transformers + torch on the same model and lengths."""

import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tests.bench import against_torch
from tests.bench.measure import GIB, Out
from tests.bench.random_model import (
  Size,
  make_cases,
  make_lengths,
  make_responses,
  stop_ids,
  write_folder,
)

MICROBATCHES = 2  # of torch's step, each padded to its longest response
PADDING = -100  # as a target: not learned


def torch_sft(size: Size, out: Out) -> dict:
  """One update by transformers + torch: fp32 weights, bfloat16 autocast, layers recomputed, fused
  AdamW on the text weights, logits of response tokens only."""
  device, model = their_model(size)
  model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
  model.train()
  for name, weight in model.named_parameters():
    weight.requires_grad_("visual" not in name)
  learned = [weight for weight in model.parameters() if weight.requires_grad]
  adam = torch.optim.AdamW(learned, lr=1e-6, weight_decay=0.01, fused=device == "cuda")
  cases, responses = make_cases(size), make_responses(size, 1)[:, 0]
  length_B = make_lengths(size, 1)[:, 0]
  pieces = np.array_split(np.arange(size.batch), MICROBATCHES)
  batches = [
    their_batch([cases[i] for i in piece], responses[piece], length_B[piece], device)
    for piece in pieces
  ]

  def run() -> float:
    total = 0.0
    for batch, targets in batches:
      with torch.autocast(device, torch.bfloat16):
        kept = targets.shape[1] + 1
        logits = model(**batch, logits_to_keep=kept, use_cache=False).logits[:, :-1]
      loss = torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), targets.flatten(), ignore_index=PADDING
      )
      (loss / len(batches)).backward()
      total += float(loss.detach()) / len(batches)
    torch.nn.utils.clip_grad_norm_(learned, 1.0)
    adam.step()
    adam.zero_grad(set_to_none=True)
    return total

  loss, seconds = _timed_torch(run, size.repeats)
  tokens = size.batch * size.bucket[0] + int(length_B.sum())
  found = {"seconds": seconds, "tokens_per_second": tokens / seconds, "loss": loss}
  return found | _their_peak(device, f"SFT step {seconds:.2f} s, {tokens / seconds:,.0f}", out)


def torch_rollouts(size: Size, out: Out) -> dict:
  """transformers' generate in bfloat16: N samples of at most T tokens for each prompt."""
  device, model = their_model(size, torch.bfloat16)
  model.eval()
  batch = _on(device, against_torch.their_batch(make_cases(size)))
  stops = stop_ids(size)
  batch["pixel_values_videos"] = batch["pixel_values_videos"].to(torch.bfloat16)
  T = size.bucket[1]

  def run() -> int:
    with torch.no_grad():
      out = model.generate(
        **batch, do_sample=True, top_k=0, temperature=0.8, max_new_tokens=T,
        min_new_tokens=0 if size.mean else T, num_return_sequences=size.samples,
        eos_token_id=stops, pad_token_id=stops[0],
      )  # fmt: skip
    ends = torch.isin(out[:, size.bucket[0] :], torch.tensor(stops, device=out.device))
    # Up to the first end, which counts; T where there is none.
    return int(((ends.cumsum(1) - ends.long()) == 0).sum())

  count, seconds = _timed_torch(run, 1)
  found = {"seconds": seconds, "tokens_per_second": count / seconds}
  return found | _their_peak(device, f"generate {seconds:.2f} s, {count / seconds:,.0f}", out)


def their_model(size: Size, dtype=None):
  """(device, transformers' Qwen3-VL of the same sizes with random weights, on it)."""
  device = "cuda" if torch.cuda.is_available() else "cpu"
  with tempfile.TemporaryDirectory() as folder:
    write_folder(size, folder)
    raw = json.loads(pathlib.Path(folder, "config.json").read_text())
  torch.manual_seed(0)
  torch.set_default_dtype(dtype or torch.float32)
  with torch.device(device):
    model = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**raw))
  torch.set_default_dtype(torch.float32)
  return device, model


def their_batch(cases: list, responses: np.ndarray, length_B: np.ndarray, device: str):
  """(torch tensors of rows as long as the longest of them, targets: PADDING behind the end)."""
  responses = responses[:, : length_B.max()]
  batch = _on(device, against_torch.their_batch(cases, responses))
  behind = torch.arange(responses.shape[1]) >= torch.tensor(length_B)[:, None]
  targets = batch["input_ids"][:, -responses.shape[1] :]
  return batch, targets.masked_fill(behind.to(device), PADDING)


def _on(device: str, batch: dict) -> dict:
  return {name: x.to(device) for name, x in batch.items()}


def _timed_torch(run: Callable, repeats: int):
  """(last result, median seconds); one call before does not count."""
  wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
  result = run()
  taken = []
  for _ in range(repeats):
    wait()
    began = time.perf_counter()
    result = run()
    wait()
    taken.append(time.perf_counter() - began)
  return result, statistics.median(taken)


def _their_peak(device: str, line: str, out: Out) -> dict:

  peak = torch.cuda.max_memory_allocated() / GIB if device == "cuda" else 0.0
  out.say(f"torch {torch.__version__}: {line} tokens/s, {peak:.1f} GiB held")
  return {"peak_gib": peak, "torch": torch.__version__, "ok": True}
