"""LongVideoBench: files, "N/A" options, prompts, subtitles, its score computed a second time."""

import json
import re
import shutil

import benchmark_files
import benchmark_media as media
import pytest
import tiny_tokenizer
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax import pool
from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.preparing import protocol_of
from rmsd_jax.core.errors import UserError
from rmsd_jax.data.chat import ChatTokenizer
from rmsd_jax.data.store import open_pool

SET = catalogue.the("longvideobench")


@pytest.mark.parametrize("form", benchmark_files.FORMS["longvideobench"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = benchmark_files.write_longvideobench(tmp_path, form)
  items = SET.read(tmp_path)
  assert [item.id for item in items] == [row["id"] for row in rows]
  assert [list(item.options) for item in items] == [row["candidates"] for row in rows]
  assert [item.answer for item in items] == ["ABCDE"[row["correct_choice"]] for row in rows]
  assert {len(item.options) for item in items} == {2, 3, 4, 5}
  assert all("N/A" not in item.options for item in items)


@pytest.mark.parametrize(
  "changes, start, end",
  [
    ((), "When kite 0", "choices directly."),
    (("prompt=official",), "Question: When kite 0", "choices directly."),
    (("prompt=lmms-eval",), "When kite 0", "choices directly.\n"),
  ],
)
def test_prompts_are_those_of_the_harnesses(changes, start, end, tmp_path):
  benchmark_files.write_longvideobench(tmp_path)
  item = SET.read(tmp_path)[0]
  (ask,) = SET.asks(item, protocol_of(SET, "vlmevalkit-64f", changes))
  middle = (
    " appears, what is the boy doing?\nA. running\nB. eating\nAnswer with the option's letter"
  )
  assert ask.text == f"{start}{middle} from the given {end}"


def test_the_score_is_micro_with_groups_of_length(tmp_path):
  _, folder, rows = prepared("longvideobench", tmp_path)
  right = []

  def reply(place, record):
    gold = "ABCDE"[rows[place]["correct_choice"]]
    said = gold if place % 3 else "E"
    # E of a word counts as E, whatever the item's options: the harness looks for A to E.
    word = place % 7 == 6
    right.append(float(("E" if word else said) == gold))
    return f"Every option but {said}" if word else f"{said}. {gold.lower()}"

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["LongVideoBench"]["mean"] == pytest.approx(sum(right) / len(rows))
  groups = card["breakdowns"]["LongVideoBench"]["duration_group"]
  assert set(groups) == {"15", "60", "600", "3600"}
  for value, score in groups.items():
    own = [x for x, row in zip(right, rows, strict=True) if str(row["duration_group"]) == value]
    assert score["mean"] == pytest.approx(sum(own) / len(own))


def test_a_choice_out_of_range_is_always_wrong(tmp_path):
  rows = benchmark_files.longvideobench_rows()
  rows[3]["correct_choice"] = 7

  root = tmp_path / "set"
  for row in rows:
    media.put_clip(root / "videos" / row["video_path"])
  media.put_json(root / "lvb_val.json", rows)

  out = tmp_path / "out"
  main(["prepare", "longvideobench", str(root), "--protocol", "paper-64f", "--out", str(out)])
  broken = records_of(out)[3]
  assert broken["task"] == "open_ended" and broken["answer"] == "(none)"
  card = scored(out, answer(out, tmp_path / "r.json", lambda n, r: r["answer"]), tmp_path / "card")
  assert card["scores"]["LongVideoBench"]["mean"] == pytest.approx(21 / 22)


def stamped(*rows):
  return [{"timestamp": [start, end], "text": text} for start, end, text in rows]


def clocked(*rows):
  return [{"start": start, "end": end, "line": text} for start, end, text in rows]


# What a file holds, seconds that the clip begins after it, its length; and what is made of it.
FILES = [
  (stamped((1.5, 3.0, "a"), (3.0, 3.25, "b")), 0.0, 4.0, [(1.5, 3.0, "a"), (3.0, 3.25, "b")]),
  (stamped((101.5, 103.0, "a"), (553.0, 555.0, "z")), 100.0, 4.0, [(1.5, 3, "a"), (453, 455, "z")]),
  (stamped((1.0, None, "a"), (2.0, 3, "b")), 0.0, 4.0, [(1.0, 4.0, "a"), (2.0, 4.0, "b")]),
  # The length is moved as an end is: (9 - 8, 4 - 8), a second around -1.5.
  (stamped((9.0, None, "a")), 8.0, 4.0, [(-2.0, -1.0, "a")]),
  (clocked(("00:00:01.500", "00:00:03.000", "a")), 0.0, 4.0, [(1.5, 3.0, "a")]),
  (clocked(("01:02:01.250", "01:02:03.000", "\u00e9\nb")), 3720.0, 4.0, [(1.25, 3.0, "\u00e9\nb")]),
  (clocked(("00:00:01", "00:00:02", ""), ("00:00:02", "00:00:03", "c")), 2.5, 4.0,
   [(-1.5, -0.5, ""), (-0.5, 0.5, "c")]),
  ([], 0.0, 4.0, []),
]  # fmt: skip


@pytest.mark.parametrize("form", benchmark_files.FORMS["longvideobench"])
@pytest.mark.parametrize(("file", "begin", "length", "lines"), FILES)
def test_both_forms_of_subtitles_are_on_the_clock_of_the_clip(
  file, begin, length, lines, form, tmp_path, monkeypatch
):
  made = benchmark_files.longvideobench_rows()[:1]
  made[0] |= {"starting_timestamp_for_subtitles": begin, "duration": length}
  monkeypatch.setattr(benchmark_files, "longvideobench_rows", lambda: made)
  root = tmp_path / "set"
  media.put_json(root / "subtitles" / "zz0_en.json", file)
  monkeypatch.setattr(media, "put_clip", lambda path, shade=0: None)
  benchmark_files.write_longvideobench(root, form)
  (item,) = SET.read(root)
  assert SET.subtitles.places(item)[0] == "subtitles/zz0_en.json"
  read = SET.subtitles.read(item, root / "subtitles" / "zz0_en.json")
  assert [(one.start, one.end, one.text) for one in read] == lines


@pytest.mark.parametrize(
  "row",
  [
    {"text": "a"},
    {"timestamp": [1.0], "text": "a"},
    {"timestamp": ["x", 1.0], "text": "a"},
    {"timestamp": [1.0, 2.0], "text": None},
    {"start": "00:01", "end": "00:00:02", "line": "a"},
    {"start": 1.0, "end": 2.0, "line": "a"},
  ],
)
def test_a_line_of_another_form_is_refused_with_its_file(row, tmp_path):
  benchmark_files.write_longvideobench(tmp_path)
  media.put_json(tmp_path / "s.json", [row])
  with pytest.raises(UserError, match=r"s\.json has the subtitle .*copy the file again"):
    SET.subtitles.read(SET.read(tmp_path)[0], tmp_path / "s.json")


def put_subtitles(root):
  for place in range(11):
    lines = [(n - 1.5 + place / 8, n - 1 + place / 8, f"line {n} of {place}.") for n in range(9)]
    clock = lambda second: f"00:01:{second:06.3f}"
    file = stamped(*lines) if place % 2 else clocked(
      *((clock(10 + start), clock(10 + end), text) for start, end, text in lines)
    )  # fmt: skip
    media.put_json(root / "subtitles" / f"zz{place}_en.json", file if place else [])


def test_subtitles_are_shown_where_the_protocol_says_so(tmp_path, monkeypatch):
  made = benchmark_files.longvideobench_rows()
  for place, row in enumerate(made):
    row["starting_timestamp_for_subtitles"] = 0.0 if place // 2 % 2 else 70.0
  monkeypatch.setattr(benchmark_files, "longvideobench_rows", lambda: made)
  root = tmp_path / "set"
  put_subtitles(root)
  changes = ("subtitles=true", "prompt=official", "frames=4")
  _, folder, _ = prepared("longvideobench", tmp_path, "vlmevalkit-64f", changes=changes)
  shown = [record["asked"].get("subtitles", []) for record in records_of(folder)]
  assert [len(lines) for lines in shown] == [0, 0, *[9] * 20]
  model = tmp_path / "model"
  tiny_tokenizer.write_model_folder(model)
  out = tmp_path / "pool"
  pool.main(["build", "--jsonl", str(folder / "records.jsonl"), "--tokenizer", str(model),
             "--frames", "4", "--video-pixels", "1024,8192", "--media-root", str(root), "--workers",
             "1", "--buckets", "2048,16,8,512", "--out", str(out)])  # fmt: skip
  built = open_pool(str(out), "test")
  by_id = {built[n].id: built[n] for n in range(len(built))}
  tokenizer = ChatTokenizer(str(model))
  for n, row in enumerate(made):
    of = by_id[row["id"]]
    text = tokenizer.decode(of.ids_P)
    text = re.sub(r"<\|vision_start\|>(<\|video_pad\|>)+<\|vision_end\|>", "[pair]", text)
    # Frames 0, 5, 10 and 15 of four a second; the middles of lines are 1 s apart, 0.5 s long.
    assert of.times_F2.tolist() == [[0.0, 1.25], [2.5, 3.75]]
    events = [(0.625, 0, "<0.6 seconds>[pair]"), (3.125, 0, "<3.1 seconds>[pair]")]
    for line in range(9 if n // 2 else 0):
      middle = line - 1.25 + n // 2 / 8
      if any(middle - 0.5 < frame < middle + 0.5 for frame in (0, 1.25, 2.5, 3.75)):
        events.append((middle, 1, f"line {line} of {n // 2}.\n"))
    assert "".join(said for *_, said in sorted(events)) + f"Question: When kite {n} " in text
  card = scored(folder, answer(folder, tmp_path / "r.json", lambda n, r: "A"), tmp_path / "card")
  assert card["notes"][0] == "with subtitles among the frames"
  assert "subtitles=True" in card["protocol_title"]


def test_a_card_without_subtitles_says_so_and_keeps_its_hashes(tmp_path):
  _, folder, _ = prepared("longvideobench", tmp_path)
  card = scored(folder, answer(folder, tmp_path / "r.json", lambda n, r: "A"), tmp_path / "card")
  assert card["notes"][0] == "without subtitles"
  assert "subtitles" not in card["protocol"]  # as cards have it that are older than the field
  shutil.rmtree(folder)
  put_subtitles(tmp_path / "set")
  about = {}
  for way in ("false", "true"):
    _, folder, _ = prepared("longvideobench", tmp_path, changes=(f"subtitles={way}",))
    about[way] = json.loads((folder / "benchmark.json").read_text("utf-8"))
    shutil.rmtree(folder)
  assert about["false"]["prompt_hash"] == card["prompt_hash"] != about["true"]["prompt_hash"]
  assert about["true"]["protocol"]["subtitles"] is True


def test_an_item_without_its_subtitles_is_named(tmp_path):
  root = tmp_path / "set"
  put_subtitles(root)
  (root / "subtitles" / "zz3_en.json").unlink()
  with pytest.raises(UserError, match="2 of 22 .*'zz3_0': no file subtitles/zz3_en.json"):
    prepared("longvideobench", tmp_path, changes=("subtitles=true",))
  _, folder, _ = prepared(
    "longvideobench", tmp_path, changes=("subtitles=true",), flags=("--allow-missing",)
  )
  missing = json.loads((folder / "benchmark.json").read_text("utf-8"))["missing"]
  assert [one["id"] for one in missing] == ["zz3_0", "zz3_1"]


@pytest.mark.parametrize("set_", ["videomme", "mathvista"])
def test_sets_that_are_asked_without_subtitles_say_so(set_, tmp_path):
  with pytest.raises(UserError, match=f"{set_} is asked without subtitles"):
    prepared(set_, tmp_path, changes=("subtitles=true",))
