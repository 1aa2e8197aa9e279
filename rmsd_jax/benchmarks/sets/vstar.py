"""V-STaR: what, when and where, in two chains of five calls an item.

    V_STaR_test.json; boxes as [{"timestamp": 5, "xmin": ..}, ..] or [{"5_150": {"xmin": ..}}, ..]
    videos/{vid}.mp4, or in any folder

Every call is a conversation of its own, which is given some of the truth: the interval to "where"
of chain 1, the number of boxes to that of chain 2, the boxes without times to "when" of chain 2. So
the chains are conditioned sub-tasks, not answers built on one another.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rmsd_jax.benchmarks import choices, grounding, official_files
from rmsd_jax.benchmarks.aggregation import Row
from rmsd_jax.benchmarks.item import Ask, Benchmark, Grade, Item, Picture
from rmsd_jax.benchmarks.protocols import ASSISTANT, Protocol

WHAT, WHEN_1, WHERE_1, WHERE_2, WHEN_2 = CALLS = ("what", "when1", "where1", "where2", "when2")
RIGHT_FROM = 2  # of a judge's ratings, 0 to 3
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_PERSON = " \n (If the answer is a person, you don't need to identify the person.)"
_STAMPS = "`From <t>start_time</t>s to <t>end_time</t>s'"


def _read(root: Path) -> list[Item]:
  """The items of a folder, in the order of the file."""
  (path, *_) = official_files.find(root, "V_STaR_test.json", "*V*ST*R*.json")
  rows = official_files.rows(path)
  return official_files.check_ids((_item(n, row, path) for n, row in enumerate(rows)), path)


def _boxes(row: Mapping[str, Any], path: Path) -> list[list[Any]]:
  """[second as it is written, x1, y1, x2, y2] of every true box, in pixels."""
  found = []
  for box in official_files.cell(row, "bboxes", path):
    entries = [(str(box["timestamp"]), box)] if "timestamp" in box else list(box.items())
    for second, sides in entries:
      numbers = [official_files.to_number(sides.get(side), side, path) for side in _SIDES]
      found.append([second.partition("_")[0], *numbers])
  return found


def _item(place: int, row: Mapping[str, Any], path: Path) -> Item:
  get = lambda name: official_files.cell(row, name, path)
  number = lambda name: official_files.to_number(get(name), name, path)
  vid = str(get("vid"))
  if number("fps") <= 0:
    raise official_files.UserError(f"{path}: fps of {vid!r} is {get('fps')!r}; copy it again")
  length = round(number("frame_count") / number("fps"), 2)
  bins = ((60, "under 60 s"), (180, "60 to 180 s"))
  stamps = get("timestamps")
  if not isinstance(stamps, list) or len(stamps) != 2:
    raise official_files.UserError(f"{path}: timestamps of {vid!r} are {stamps!r}, not two seconds")
  return Item(
    id=f"{vid}-{place}",
    cluster=vid,
    question=str(get("question")),
    options=(),
    answer=str(get("answer")),
    media=(Picture("video", (f"videos/{vid}.mp4", f"**/{vid}.mp4")),),
    fields={
      "domain": str(row.get("domain") or "unknown"),
      "length": next((name for most, name in bins if length < most), "180 s and more"),
    },
    extra={
      "length": length,
      "width": number("width"),
      "height": number("height"),
      "interval": [official_files.to_number(one, "timestamps", path) for one in stamps],
      "boxes": _boxes(row, path),
      **{name: str(get(name)) for name in _QUESTIONS},
    },
    row={"vid": vid},
  )


_QUESTIONS = ("temporal_question", "spatial_question", "spatial_question_2")


def _told(item: Item, protocol: Protocol) -> list[list[int | float]]:
  """The true boxes as a prompt shows them, in the coordinates of the protocol."""
  boxes = [box[1:] for box in item.extra["boxes"]]
  if protocol.coord_mode == "relative-1000":
    scale = [1000 / item.extra[side] for side in ("width", "height", "width", "height")]
    boxes = [[round(x * unit) for x, unit in zip(box, scale, strict=True)] for box in boxes]
  return [[int(x) if x == int(x) else x for x in box] for box in boxes]


def _seconds(item: Item) -> list[int]:
  """The whole seconds of the true interval; its first where none lies inside."""
  start, end = item.extra["interval"]
  return list(range(math.ceil(start), math.floor(end) + 1)) or [math.ceil(start)]


def _long(item: Item, sized: bool) -> str:
  size = f"{item.extra['width']:g}x{item.extra['height']:g}"
  with_size = f" with a resolution of {size} (width x height)" if sized else ""
  return f"This video is {item.extra['length']} seconds long{with_size}. "


def _given_boxes(item: Item, protocol: Protocol) -> str:
  boxes = _told(item, protocol)
  return (
    f"There are {len(boxes)} bounding boxes of the key object related to the question in the video "
    f"without knowing the time, which are:{boxes}. "
  )


def _where(item: Item, call: str, part: str) -> tuple[str, str]:
  """(question, what to write) of a spatial call; `part` names the part that is to hold it."""
  count = len(item.extra["boxes"])
  seconds = _seconds(item)
  field = "spatial_question" if call == WHERE_1 else "spatial_question_2"
  asked = (
    f"Please answer the question about the video: {item.extra[field]} with a series of bounding "
    "boxes in [x1, y1, x2, y2] format."
  )
  output = "output a series of bounding boxes of the object in JSON format."
  keys = "The keys should be the whole seconds (as strings), and the values should be the"
  if call == WHERE_1:
    how = (
      f"or each whole second within the time range {seconds} provided (inclusive of the "
      f"boundaries), {output} {keys} box in [x1, y1, x2, y2] format.\n"
      f'Example output{part}: {{"{seconds[0]}": [x1, y1, x2, y2],...}}\n'
    )
    return asked, how
  how = (
    f"or each whole second that may related to the question, {output} You only need to output "
    f"{count} bbox(es). You need to determine which frame is related to the question, and you "
    "don't need to output the bbox for the frames not related to the question.\n"
    f"{keys} bounding box in [x0,y0,x1,y1] format.\n\nExample output{part}:\n"
    f'{{"0": [x0,y0,x1,y1], "1":..., ..., "{count}":...}} '
    f"(if the frames at 0~{count} second are related to the questions)\n"
  )
  return asked, how


def _official(item: Item, protocol: Protocol) -> list[Ask]:
  """The words stand before the clip."""
  when = f"Answer the question about the video: {item.extra['temporal_question']} \n "
  ends = "Output the start and end moment timestamps."
  texts = {
    WHAT: f"Answer the question about the video: {item.question}{_PERSON}",
    WHEN_1: f"{_long(item, False)}{when}{ends}",
    WHEN_2: f"{_long(item, True)}{when}{_given_boxes(item, protocol)}{ends}",
  }
  for call in (WHERE_1, WHERE_2):
    asked, how = _where(item, call, "")
    texts[call] = f"{asked} \nF{how}"
  return [Ask("", texts[call], call) for call in CALLS]


def _open_o3(item: Item, protocol: Protocol) -> list[Ask]:
  """Open-o3-Video's; the clip stands in the middle, and is a clip instead of single pictures."""
  think = protocol.thinking
  answer = item.extra["temporal_question"]
  when = f"\nAnswer the question about the video: {answer} \n"
  follow = f"must follow the following format: {_STAMPS}"
  form = f"Directly output the start and end moment timestamps. You {follow}."
  if think:
    form = f"{choices.THINK} The answer {follow}"
  evidence = (
    f"{choices.THINK} {choices.EVIDENCE} Do not use <box>, <obj> and <t> in the answer part."
  )
  what = f"Answer the question about the video: {item.question}{_PERSON}{evidence if think else ''}"
  asks = {
    WHAT: Ask(what, "", WHAT),
    WHEN_1: Ask(f"{when}{'. ' if think else ''}{form}", _long(item, False), WHEN_1),
    WHEN_2: Ask(f"{when}{_given_boxes(item, protocol)}{form}", _long(item, True), WHEN_2),
  }
  for call in (WHERE_1, WHERE_2):
    asked, how = _where(item, call, " of the answer part" if think else "")
    middle = f"{choices.THINK}\nIn the answer part, f" if think else "F"
    asks[call] = Ask(f"\n{asked}\n{middle}{how}", "", call)
  return [asks[call] for call in CALLS]


def _grade(item: Item, call: str, reply: str, protocol: Protocol) -> Grade:
  """tIoU of "when", mean IoU over all true boxes of "where"; "what" is for a judge."""
  parser = protocol.extractor
  if parser not in grounding.PARSERS:
    raise official_files.UserError(
      f"extractor {parser!r}: V-STaR has {', '.join(grounding.PARSERS)}"
    )
  if call == WHAT:
    said = choices.letters.answer_span(reply) if parser != "official" else reply.strip()
    return Grade(0.0, said or None)
  if call in (WHEN_1, WHEN_2):
    found = grounding.interval_in(reply, parser)
    value = grounding.temporal_iou(item.extra["interval"], found)
    more = {f"R@{limit}": float(value >= limit) for limit in grounding.TIME_THRESHOLDS}
    return Grade(value, None if found is None else f"{found[0]:g} - {found[1]:g}", more)
  boxes = grounding.boxes_in(reply, parser)
  if boxes:
    size = item.extra["width"], item.extra["height"]
    boxes = grounding.in_pixels(boxes, protocol.coord_mode, *size)
  key = grounding.whole_second if parser == "robust" else str
  truth = [(key(second), tuple(box)) for second, *box in item.extra["boxes"]]
  ious = grounding.ious(truth, boxes)
  share: Callable[[float], float] = lambda limit: _mean([float(iou >= limit) for iou in ious])
  more = {f"AP@{limit}": share(limit) for limit in grounding.THRESHOLDS}
  return Grade(_mean(ious), f"{len(boxes)} boxes" if boxes else None, more)


def _mean(values: Sequence[float]) -> float:
  return sum(values) / len(values) if values else 0.0


def further(rows: Sequence[Row]) -> dict[str, Any]:
  """Thresholds by call, and of both chains AM and LGM where a judge has rated "what"."""
  by_call = {call: [row for row in rows if row.call == call] for call in CALLS}
  figures: dict[str, Any] = {}
  for call, found in by_call.items():
    names = dict.fromkeys(name for row in found for more in row.more for name in more)
    for name in names:
      if call != WHAT:
        figures[f"{call} {name}"] = _mean([_mean([m[name] for m in row.more]) for row in found])
  if not by_call[WHAT]:
    return figures
  means = {call: _mean([row.value for row in found]) for call, found in by_call.items()}
  figures["Acc"] = means[WHAT]
  chains = {"1": (WHEN_1, WHERE_1), "2": (WHEN_2, WHERE_2)}
  for chain, calls in chains.items():
    shares = [means[WHAT], *(means[call] for call in calls)]
    figures[f"AM chain {chain}"] = _mean(shares)
    figures[f"LGM chain {chain}"] = grounding.log_mean(shares)
    figures |= _joint(by_call, chain, calls)
  figures["mAM"] = _mean([figures[f"AM chain {chain}"] for chain in chains])
  figures["mLGM"] = _mean([figures[f"LGM chain {chain}"] for chain in chains])
  return figures


def _joint(
  by_call: Mapping[str, Sequence[Row]], chain: str, calls: Sequence[str]
) -> dict[str, float]:
  """Shares of items that are right in several ways at once: rating 2, tIoU 0.3, vIoU 0.1."""
  least = {"what": 1.0, "when": 0.3, "where": 0.1}
  names = dict(zip(least, (WHAT, *calls), strict=True))
  right = {
    name: {row.item for row in by_call[call] if row.value >= least[name]}
    for name, call in names.items()
  }
  total = len({row.item for rows in by_call.values() for row in rows})
  figures = {}
  for several in (*itertools.combinations(least, 2), tuple(least)):
    both = set.intersection(*(right[name] for name in several))
    figures[f"{' + '.join(several)} chain {chain}"] = len(both) / total
  return figures


_PICTURES = {
  "frames": 0,
  "fps": 1.0,
  "min_frames": 1,
  "max_frames": 16,
  "video_max_pixels": 2_097_152,
  "max_tokens": 2_048,
  "extractor": "robust",
  "system": ASSISTANT,
}
SET = Benchmark(
  name="vstar",
  title="V-STaR",
  size=2_094,
  read=_read,
  prompts={"official": _official, "open-o3": _open_o3},
  grade=_grade,
  presets={
    "paper-64f": _PICTURES,
    "open-o3-video-64f": _PICTURES | {"extractor": "open-o3"},
    "qwen-2fps": {"prompt": "official", "extractor": "robust", "system": ASSISTANT},
  },
  calls=CALLS,
  breakdowns=("domain", "length"),
  columns={
    "When Chain1": WHEN_1,
    "When Chain2": WHEN_2,
    "Where Chain1": WHERE_1,
    "Where Chain2": WHERE_2,
  },
  judged=(WHAT,),
  further=further,
  notes=(
    "the chains are conditioned sub-tasks: each call is given a part of the truth",
    "all items count in every mean; the official script leaves those without an answer to 'what' "
    "out of the means of when and where",
    "16 frames at most, one a second, as in Open-o3-Video, as one clip with its times instead of "
    "single pictures",
  ),
)
