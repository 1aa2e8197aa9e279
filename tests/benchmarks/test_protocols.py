"""Presets, what a set and a user change in them, and the registry of sets."""

import argparse
import dataclasses
import json

import benchmark_files
import pytest

from rmsd_jax import pool
from rmsd_jax.benchmarks import catalogue, letters, protocols
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.protocols import PRESETS, Protocol, protocol_named
from rmsd_jax.core.errors import UserError
from rmsd_jax.data import media
from rmsd_jax.data.images import Budget

SETS = catalogue.all_sets()
PAIRS = [
  (name, preset)
  for name, one in SETS.items()
  for preset in PRESETS
  if protocol_named(preset, one.presets).prompt in one.prompts
]


def test_the_eight_sets_a_baseline_and_five_presets_are_there():
  assert set(SETS) == set(benchmark_files.WRITERS)
  sizes = (1337, 3940, 1000, 2175, 2700, 900, 300, 2094, 3172)
  assert tuple(one.size for _, one in sorted(SETS.items())) == sizes
  assert list(PRESETS) == [
    "paper-64f", "vlmevalkit-64f", "open-o3-video-64f", "lmms-eval-64f", "qwen-2fps"
  ]  # fmt: skip
  assert "our reading" in PRESETS["paper-64f"].note
  assert {(name, "paper-64f") for name in SETS} <= set(PAIRS)


@pytest.mark.parametrize("name, preset", PAIRS)
def test_every_preset_asks_and_reads_every_set_that_it_has(name, preset, tmp_path):
  one = SETS[name]
  benchmark_files.WRITERS[name](tmp_path)
  protocol = protocol_named(preset, one.presets)
  for item in one.read(tmp_path):
    asks = one.asks(item, protocol)
    assert [ask.call for ask in asks] == list(one.calls)
    assert all(ask.text.strip() or ask.before.strip() for ask in asks)
    for call in one.calls:
      grade = one.grade(item, call, "B", protocol)
      assert grade.value in (0, 1) and json.dumps([grade.value, grade.read])


@pytest.mark.parametrize("preset", PRESETS)
def test_the_pool_takes_the_flags_of_a_preset(preset):
  protocol = PRESETS[preset]
  parser = argparse.ArgumentParser()
  pool._add_media_flags(parser.add_argument_group("media"))
  args = parser.parse_args(protocol.pool_flags())
  assert args.frames == (protocol.frames or None)
  assert args.video_pixels == (protocol.video_min_pixels, protocol.video_max_pixels)
  even = protocol.video_style == "utils_video"
  sampling = media.Sampling(args.fps, args.min_frames, args.max_frames, args.frames, even)
  assert sampling.count(100_000, 25) == (64 if "64" in preset else 512)
  assert Budget(protocol.video_style, *args.video_pixels).size(64, 480, 640)


def test_figures_of_the_harnesses_are_in_their_presets():
  o3 = PRESETS["open-o3-video-64f"]
  assert (o3.max_frames, o3.video_max_pixels, o3.max_tokens, o3.temperature) == (
    64,
    262144,
    8192,
    0,
  )
  stars = protocol_named("open-o3-video-64f", SETS["vstar"].presets)
  assert (stars.max_frames, stars.fps, stars.max_tokens) == (16, 1, 2048)
  assert stars.video_max_pixels == 2_097_152
  qwen = PRESETS["qwen-2fps"]
  assert (qwen.fps, qwen.max_frames, qwen.video_min_pixels) == (2, 512, 3584)
  assert (qwen.temperature, qwen.top_p, qwen.top_k, qwen.max_tokens) == (0.7, 0.8, 20, 32768)
  lmms = PRESETS["lmms-eval-64f"]
  assert (lmms.frames, lmms.system) == (64, "You are a helpful assistant.")
  assert (lmms.video_min_pixels, lmms.video_max_pixels) == (200_704, 786_432)


def test_any_field_can_be_changed_and_is_marked():
  changes = ["frames=16", "thinking=false", "temperature=0.6", "system=Be brief.", "frames=32"]
  protocol = protocol_named("paper-64f", SETS["videomme"].presets, changes)
  assert (protocol.frames, protocol.thinking, protocol.temperature) == (32, False, 0.6)
  assert protocol.changed == ("frames", "system", "temperature", "thinking")
  assert "frames=32" in protocol.title and protocol.title.startswith("paper-64f (")
  for field in dataclasses.fields(Protocol):
    if field.name not in ("name", "changed"):
      value = getattr(protocol, field.name)
      one = protocol_named("paper-64f", {}, [f"{field.name}={value}"])
      assert getattr(one, field.name) == value
  same = protocol_named("paper-64f", {}, ["frames=64"])
  assert same.changed == () and same.title == "paper-64f"
  assert Protocol.from_json(json.loads(json.dumps(protocol.to_json()))) == protocol


@pytest.mark.parametrize(
  "name, change, message",
  [
    ("paper", "", "--protocol 'paper': use one of paper-64f"),
    ("paper-64f", "frame=3", "did you mean frames"),
    ("paper-64f", "frames", "give field=value"),
    ("paper-64f", "frames=many", "frames is of the kind int"),
    ("paper-64f", "frames=-1", "frames=-1: give 0 or more"),
    ("paper-64f", "thinking=perhaps", "thinking is of the kind bool"),
    ("paper-64f", "aggregation=median", "aggregation='median': it is one of micro, macro"),
    ("paper-64f", "coord_mode=percent", "coord_mode='percent': it is one of relative-1000, pixels"),
    ("paper-64f", "top_p=0", "top_p in"),
    ("paper-64f", "video_max_pixels=5", "give 131072 or more"),
    ("paper-64f", "name=mine", "a field of prompt"),
    ("paper-64f", "temperature=nan", "give 0 or more"),
  ],
)
def test_a_wrong_change_is_refused_with_what_is_right(name, change, message):
  with pytest.raises(UserError, match=message):
    protocol_named(name, {}, [change] if change else [])


def test_a_set_without_such_prompts_names_those_it_has(tmp_path):
  benchmark_files.write_vstar(tmp_path / "set")
  command = ["prepare", "vstar", str(tmp_path / "set"), "--out", str(tmp_path / "out")]
  with pytest.raises(
    UserError, match="vstar has no prompts 'vlmevalkit'; it has official, open-o3"
  ):
    main([*command, "--protocol", "vlmevalkit-64f"])
  main([*command, "--protocol", "vlmevalkit-64f", "--set", "prompt=official", "--set",
        "extractor=robust"])  # fmt: skip


def test_list_names_everything(capsys):
  main(["list"])
  shown = capsys.readouterr().out
  assert all(word in shown for word in (*SETS, *PRESETS, *letters.EXTRACTORS))
  with pytest.raises(UserError, match="there is no set 'mmlu'; use one of longvideobench"):
    catalogue.the("mmlu")


def test_a_ninth_set_is_one_file(tmp_path, monkeypatch):
  source = (
    "import dataclasses\nfrom rmsd_jax.benchmarks.sets.videomme import SET as OTHER\n"
    "SET = dataclasses.replace(OTHER, name='ninth')\n"
  )
  (tmp_path / "ninth.py").write_text(source, "utf-8")
  from rmsd_jax.benchmarks import sets

  monkeypatch.setattr(sets, "__path__", [*sets.__path__, str(tmp_path)])
  catalogue.all_sets.cache_clear()
  try:
    assert "ninth" in catalogue.all_sets() and catalogue.the("ninth").size == 2700
  finally:
    catalogue.all_sets.cache_clear()
  assert protocols.PRESETS is PRESETS
