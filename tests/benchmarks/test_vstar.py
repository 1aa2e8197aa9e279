"""V-STaR: both forms of boxes, five calls, both chains, and its scores computed a second time."""

import json
import math

import benchmark_files
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue, grounding, judging
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.answered import read_responses
from rmsd_jax.benchmarks.preparing import load, protocol_of
from rmsd_jax.benchmarks.scoring import card as make_card
from rmsd_jax.benchmarks.scoring import grade
from rmsd_jax.core.errors import UserError

SET = catalogue.the("vstar")
CALLS = ("what", "when1", "where1", "where2", "when2")


@pytest.mark.parametrize("form", ["new", "old"])
def test_old_and_new_boxes_are_the_same(form, tmp_path):
  benchmark_files.write_vstar(tmp_path, form)
  items = SET.read(tmp_path)
  assert len(items) == 20 and len({item.cluster for item in items}) == 10
  assert items[4].extra["boxes"] == [["2", 10, 4, 30, 40], ["3", 10, 4, 30, 40]]
  assert [item.fields["length"] for item in items[:4]] == [
    "under 60 s", "60 to 180 s", "60 to 180 s", "180 s and more"
  ]  # fmt: skip


def test_each_item_is_five_calls_with_their_part_of_the_truth(tmp_path):
  _, folder, rows = prepared("vstar", tmp_path)
  records = {record["id"]: record for record in records_of(folder)}
  assert len(records) == 100 and {record["clip"] for record in records.values()} >= {"v&0"}
  words = {
    call: "{before}<video>{text}".format(**{"before": ""} | records[f"v&2-4#{call}"]["asked"])
    for call in CALLS
  }
  assert "What does girl 4 pick up?" in words["what"] and "[" not in words["what"].split("`")[0]
  assert words["when1"].startswith("This video is 4.0 seconds long. <video>\nAnswer the question")
  assert "within the time range [2, 3] provided" in words["where1"]  # ceil(1.5) to floor(3.5)
  assert "You only need to output 2 bbox(es)" in words["where2"]
  assert "with a resolution of 64x48 (width x height). <video>" in words["when2"]
  told = [round(10 * 1000 / 64), round(4 * 1000 / 48), round(30 * 1000 / 64), round(40 * 1000 / 48)]
  assert "There are 2 bounding boxes" in words["when2"] and f"{[told, told]}" in words["when2"]
  assert all(records[f"v&2-4#{call}"]["asked"]["system"] for call in CALLS)


def test_boxes_are_told_in_pixels_where_the_protocol_says_so(tmp_path):
  benchmark_files.write_vstar(tmp_path)
  item = SET.read(tmp_path)[4]
  pixels = protocol_of(SET, "paper-64f", ["coord_mode=pixels"])
  assert "which are:[[10, 4, 30, 40], [10, 4, 30, 40]]." in SET.asks(item, pixels)[4].text
  official = protocol_of(SET, "paper-64f", ["prompt=official"])
  asks = SET.asks(item, official)
  assert all(ask.before and not ask.text for ask in asks)  # the words stand before the clip
  assert asks[1].before.endswith("Output the start and end moment timestamps.")


def test_an_interval_without_a_whole_second_still_asks_for_one(tmp_path):
  benchmark_files.write_vstar(tmp_path)
  item = SET.read(tmp_path)[7]
  assert item.extra["interval"] == [1.5, 1.8]
  assert "time range [2] provided" in SET.asks(item, protocol_of(SET, "paper-64f", ()))[2].text


def iou(a, b):
  inside = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
  area = lambda box: (box[2] - box[0]) * (box[3] - box[1])
  return inside / (area(a) + area(b) - inside)


@pytest.mark.parametrize("coordinates", ["relative-1000", "pixels"])
@pytest.mark.parametrize("parser", ["official", "robust"])
def test_the_four_columns_are_the_means_over_all_items(parser, coordinates, tmp_path):
  changes = (f"extractor={parser}", f"coord_mode={coordinates}")
  _, folder, rows = prepared("vstar", tmp_path, changes=changes)
  values = {call: [] for call in CALLS[1:]}

  def reply(place, record):
    row, call = rows[place // 5], record["benchmark"]["call"]
    n = place // 5
    if call == "what":
      return "a cup" if n % 2 else ""
    start, end = row["timestamps"]
    if call.startswith("when"):
      shift = 0.5 * (n % 3)
      said = read = (start + shift, end + shift)
      unit = "s" if n % 4 == 3 else ""
      if unit and parser == "official":
        read = tuple(map(math.floor, said))  # what follows the point is lost before an s
      hull = max(end, read[1]) - min(start, read[0])
      overlap = max(0, min(end, read[1]) - max(start, read[0]))
      values[call].append(overlap / hull)
      return f"From {said[0]}{unit} to {said[1]}{unit}"
    truth = {b["timestamp"]: [b["xmin"], b["ymin"], b["xmax"], b["ymax"]] for b in row["bboxes"]}
    said = {second: [box[0], box[1], box[2] - 4, box[3]] for second, box in truth.items()}
    if n % 3 == 0:
      said.pop(max(said))  # a second without a box is worth 0
    each = [iou(box, said[second]) if second in said else 0 for second, box in truth.items()]
    values[call].append(sum(each) / len(each))
    unit = (1000 / 64, 1000 / 48) * 2 if coordinates == "relative-1000" else (1,) * 4
    shown = {str(s): [x * u for x, u in zip(box, unit, strict=True)] for s, box in said.items()}
    text = json.dumps(shown)
    return f"```json\n{text}\n```" if n % 2 else f"Here it is: {text}"

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  columns = dict(zip(card["scores"], ("when1", "when2", "where1", "where2"), strict=True))
  assert list(columns) == ["When Chain1", "When Chain2", "Where Chain1", "Where Chain2"]
  for title, call in columns.items():
    assert card["scores"][title]["mean"] == pytest.approx(sum(values[call]) / 20), title
    assert card["scores"][title]["n"] == 20  # items without an answer to "what" count, too
  for limit in (0.3, 0.5, 0.7):
    share = sum(value >= limit for value in values["when1"]) / 20
    assert card["further"][f"when1 R@{limit}"] == pytest.approx(share)
  assert card["judge"] == "none: what" and "Acc" not in card["further"]
  assert card["protocol"]["coord_mode"] == coordinates
  daily = [value for n, value in enumerate(values["where2"]) if n % 2 == 0]
  shown = card["breakdowns"]["Where Chain2"]["domain"]["Daily Life"]
  assert shown["mean"] == pytest.approx(sum(daily) / 10)


def test_a_judge_gives_acc_am_and_lgm(tmp_path):
  _, folder, rows = prepared("vstar", tmp_path)

  def reply(place, record):
    row, call = rows[place // 5], record["benchmark"]["call"]
    if call.startswith("when"):
      return f"{row['timestamps'][0]} to {row['timestamps'][1] + (1 if call == 'when2' else 2)}"
    return "a cup" if call == "what" else "none"

  path = answer(folder, tmp_path / "r.json", reply)
  ready, responses = load(folder), read_responses(path)
  asked = []

  def judge(question, truth, said):
    asked.append((question, truth, said))
    return len(asked) % 4  # 1, 2, 3, 0, ..: two of four are right

  found = judging.judged_by("mine", judge, ready, responses)
  assert len(asked) == 20 and asked[0] == ("What does girl 0 pick up?", "a cup", "a cup")
  rows_ = grade(ready, responses, ready.protocol, judgements=found)
  card = make_card(ready, responses, ready.protocol, rows_, found.judge)
  lengths = [row["timestamps"][1] - row["timestamps"][0] for row in rows]
  when = {k: sum(x / (x + extra) for x in lengths) / 20 for k, extra in (("1", 2), ("2", 1))}
  further = card["further"]
  assert further["Acc"] == 0.5 and card["judge"] == "mine"
  for chain in "12":
    assert further[f"AM chain {chain}"] == pytest.approx((0.5 + when[chain] + 0) / 3)
    lgm = -(math.log(0.5) + math.log(1 - when[chain]) + 0) / 3
    assert further[f"LGM chain {chain}"] == pytest.approx(lgm)
  assert further["mAM"] == pytest.approx((1 + when["1"] + when["2"]) / 6)
  both = sum(1 for n, x in enumerate(lengths) if (n + 1) % 4 in (2, 3) and x / (x + 2) >= 0.3) / 20
  assert further["what + when chain 1"] == pytest.approx(both)
  assert further["what + when + where chain 1"] == 0


@pytest.mark.parametrize(("name", "value"), [("fps", 0), ("fps", math.nan), ("width", math.inf)])
def test_a_rate_or_size_that_is_none_is_refused(name, value, tmp_path):
  benchmark_files.write_vstar(tmp_path)
  path = tmp_path / "V_STaR_test.json"
  rows = json.loads(path.read_text("utf-8"))
  rows[0][name] = value
  path.write_text(json.dumps(rows))
  with pytest.raises(UserError, match=f"{name} "):
    SET.read(tmp_path)


def test_a_second_may_have_several_boxes_of_which_the_best_counts():
  pairs = '[{"time": 5, "bbox_2d": [1, 2, 3, 4]}, {"time": 5, "bbox_2d": [10, 20, 30, 40]}]'
  keys = '{"5": [1, 2, 3, 4], "5.0": [10, 20, 30, 40]}'
  for reply in (pairs, keys):
    found = grounding.boxes_in(reply, "robust")
    assert found == {"5": [(1, 2, 3, 4), (10, 20, 30, 40)]}
    assert grounding.ious([("5", (10, 20, 30, 40))], found) == [1]


def test_a_clip_that_is_missing_takes_all_its_calls_along(tmp_path):
  root, folder, _ = prepared("vstar", tmp_path)
  for path in root.rglob("v&3.mp4"):
    path.unlink()
  out = tmp_path / "part"
  command = ["prepare", "vstar", str(root), "--protocol", "paper-64f", "--out", str(out)]
  main([*command, "--allow-missing"])
  assert [one["id"] for one in load(out).about["missing"]] == ["v&3-6", "v&3-7"]
  assert len(records_of(out)) == 90
