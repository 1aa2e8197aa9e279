"""Folders of the official schema of every evaluation set, small and made up, with real media.

    python tests/support/benchmark_files.py SET ROOT [--form FORM]

Each has 20 items or more and the oddities of its set. The texts are invented.
"""

import argparse
import json
import pathlib

import benchmark_media as media
import benchmark_pictures as pictures

FORMS = {
  "videomme": ("parquet", "tsv", "json"),
  "videommmu": ("parquet", "tsv", "json"),
  "videommmu_question_only": ("parquet", "tsv", "json"),
  "worldsense": ("json", "tsv", "parquet"),
  "longvideobench": ("json", "tsv", "parquet"),
  "mlvu": ("json", "tsv", "parquet"),
  "mathvista": ("json", "tsv", "parquet"),
  "mathverse": ("json", "tsv", "parquet"),
  "vstar": ("new", "old"),
}
ODD = ('Who says "hello"?\tTwo lines\nof text', "¿Qué pasa? 你好 – é")
NUMBERS = ("One", "Two", "Three", "Four")
TRACKS = ("Perception", "Comprehension", "Adaptation")
MLVU_TASKS = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")


def videomme_rows():
  """24 questions of 8 videos."""
  rows = []
  for video in range(8):
    duration = ("short", "medium", "long")[video % 3]
    for number in range(3):
      place = 3 * video + number
      rows.append(
        {
          "video_id": f"{video + 1:03d}",
          "duration": duration,
          "domain": ("Life Record", "Knowledge")[video % 2],
          "sub_category": ("Food", "Law", "Travel")[video % 3],
          "url": f"https://www.youtube.com/watch?v=aB{video}_-x",
          "videoID": f"aB{video}_-x",
          "question_id": f"{video + 1:03d}-{number + 1}",
          "task_type": ("Counting Problem", "OCR Problems", "Action Reasoning")[number],
          "question": ODD[place % 2] if place in (4, 5) else f"How many eggs, question {place}?",
          "options": [f"{letter}. {text}." for letter, text in zip("ABCD", NUMBERS, strict=True)],
          "answer": "ABCD"[(place * 7) % 4],
        }
      )
  return rows


def write_videomme(root, form="parquet", folder="data", end=".mp4"):
  rows = videomme_rows()
  for row in rows:
    media.put_clip(root / folder / f"{row['videoID']}{end}", int(row["video_id"]))
  if form == "parquet":
    media.put_parquet(root / "videomme" / "test-00000-of-00001.parquet", rows)
  elif form == "tsv":
    kept = ("duration", "domain", "sub_category", "task_type", "question", "answer")
    table = [
      {"index": n, "video": row["videoID"], "candidates": str(row["options"])}
      | {name: row[name] for name in kept}
      for n, row in enumerate(rows)
    ]
    media.put_table(root / "Video-MME.tsv", table)
  else:
    shared = ("video_id", "duration", "domain", "sub_category", "url")
    videos = []
    for start in range(0, len(rows), 3):
      one = {name: rows[start][name] for name in shared}
      own = [n for n in rows[start] if n not in (*shared, "videoID")]
      one["questions"] = [{name: row[name] for name in own} for row in rows[start : start + 3]]
      videos.append(one)
    media.put_json(root / "videomme.json", videos)
  return rows


def videommmu_rows():
  """8 videos, one question a track: 14 and 11 options, open ones, broken truths, no type."""
  subjects = ("Economics", "Art_Theory", "Physics", "Architecture_and_Engineering")
  rows = {track: [] for track in TRACKS}
  for video in range(8):
    name = f"{('validation', 'test')[video % 2]}_{subjects[video % 4]}_{900 + video}"
    for track, count in zip(TRACKS, (14, 11, 10), strict=True):
      count = (count, 4)[video % 2]
      options = [f"choice {n} of {track.lower()}" for n in range(count)]
      answer = chr(ord("A") + (video * 5) % count)
      row = {"id": name, "question": f"What of {track} {video}?", "options": options}
      row |= {"answer": answer, "question_type": "multiple-choice"}
      if track == "Perception" and video == 2:
        row["options"] = [f"{chr(65 + n)}. {text}" for n, text in enumerate(options)]
      rows[track].append(row)
  adaptation = rows["Adaptation"]
  for place, answer in ((1, "2.83"), (3, "1000"), (5, "['24/7', '3.429', '3.43]"), (7, "A")):
    adaptation[place] |= {"options": [], "answer": answer, "question_type": "open"}
  adaptation[4]["question_type"] = None
  for place, row in enumerate(adaptation):
    row["question"] = f"<image 1> {row['question']}"
    row["image"] = {"bytes": media.picture(place), "path": f"{row['id']}.png"}
  return rows


def videommmu_folder(name):
  return {"Economics": "Business", "Art_Theory": "Art", "Physics": "Science"}.get(
    "_".join(name.split("_")[1:-1]), "Engineering"
  )


def write_videommmu(root, form="parquet"):
  rows = videommmu_rows()
  for place, row in enumerate(rows["Perception"]):
    media.put_clip(root / videommmu_folder(row["id"]) / f"{row['id']}.mp4", place)
  if form == "parquet":
    for track in TRACKS:
      media.put_parquet(root / track / "test-00000-of-00001.parquet", rows[track])
    return rows
  for row in rows["Adaptation"]:
    path = root / "images" / row["image"]["path"]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(row["image"]["bytes"])
  if form == "tsv":
    table = [
      {"index": n, "category": track, **row, "options": json.dumps(row["options"])}
      | ({"image": f"images/{row['image']['path']}"} if "image" in row else {})
      for n, (track, row) in enumerate((track, row) for track in TRACKS for row in rows[track])
    ]
    media.put_table(root / "VideoMMMU.tsv", table)
    return rows
  plain = {"question_type", "image"}
  value = {}
  for track in TRACKS:
    left = {"image"} if track == "Adaptation" else plain
    value[track] = {
      str(n): {k: v for k, v in row.items() if k not in left} | {"link_selected": "https://x"}
      for n, row in enumerate(rows[track])
    }
  media.put_json(root / "videommmu.json", value)
  return rows


def write_videommmu_question_only(root, form="parquet"):
  """The files of the set, and the clips of its question images."""
  rows = write_videommmu(root, form)
  for place, row in enumerate(rows["Adaptation"]):
    media.put_clip(root / "question_only" / f"{row['id']}_image.mp4", place)
  return rows


def worldsense_videos():
  """6 videos of 4 questions; each second question has 3 options."""
  videos = {}
  for number in range(6):
    one = {
      "duration": ("<1min", "1-2min", ">8min")[number % 3],
      "domain": ("Music", "Sports")[number % 2],
      "sub_category": f"kind {number % 3}",
      "audio_class": [["Music"], ["Speech", "Event"]][number % 2],
      "video_caption": "A band plays.\nThen it stops.",
    }
    for task in range(4):
      texts = ("Drum", "Flute", "Piano", "Violin")[: 3 if task % 2 else 4]
      one[f"task{task}"] = {
        "task_domain": ("Recognition", "Understanding", "Reasoning")[task % 3],
        "task_type": ("Audio Recognition", "Object Counting")[task % 2],
        "question": f"Which instrument starts in part {task} of {number}?",
        "candidates": [f"{letter}. {text}" for letter, text in zip("ABCD", texts, strict=False)],
        "answer": "ABC"[(number + task) % 3],
      }
    videos[f"vid&X{number}"] = one
  return videos


def worldsense_rows(videos):
  rows = []
  for video, about in videos.items():
    shared = {key: value for key, value in about.items() if "task" not in key}
    for key, task in about.items():
      if "task" in key:
        rows.append({"index": len(rows), "video": video, **shared, **task})
  return rows


def write_worldsense(root, form="json"):
  videos = worldsense_videos()
  for place, video in enumerate(videos):
    media.put_clip(root / "videos" / f"{video}.mp4", place)
  rows = worldsense_rows(videos)
  if form == "json":
    media.put_json(root / "worldsense_qa.json", videos)
  elif form == "tsv":
    lists = ("candidates", "audio_class")
    table = [row | {name: str(row[name]) for name in lists} for row in rows]
    media.put_table(root / "WorldSense.tsv", table)
  else:
    media.put_parquet(root / "data" / "test-00000-of-00001.parquet", rows)
  return rows


def longvideobench_rows():
  """22 questions of 11 videos with 2 to 5 options."""
  rows = []
  for n in range(22):
    count = 2 + n % 4
    video = f"zz{n // 2}"
    rows.append(
      {
        "video_id": video,
        "id": f"{video}_{n % 2}",
        "video_path": f"{video}.mp4",
        "subtitle_path": f"{video}_en.json",
        "question": f"When kite {n} appears, what is the boy doing?",
        "question_wo_referring_query": "What is the boy doing?",
        "candidates": ["running", "eating", "reading", "sleeping", "waving"][:count],
        "correct_choice": (3 * n) % count,
        "position": [12 * n, 120],
        "topic_category": "LT-Lifestyle-Travel",
        "question_category": ("S2A", "T3O", "TOS")[n % 3],
        "level": ("L1-Perception", "L2-Relation")[n % 2],
        "duration_group": (15, 60, 600, 3600)[n % 4],
        "duration": 42.5 + n,
        "starting_timestamp_for_subtitles": 0.0,
        "view_count": n,
      }
    )
  return rows


def write_longvideobench(root, form="json"):
  rows = longvideobench_rows()
  for place, row in enumerate(rows):
    media.put_clip(root / "videos" / row["video_path"], place)
  if form == "json":
    media.put_json(root / "lvb_val.json", rows)
  elif form == "tsv":
    table = [
      row | {"index": n, "candidates": str(row["candidates"]), "position": str(row["position"])}
      | {"video_path": f"./videos/{row['video_path']}"}
      for n, row in enumerate(rows)
    ]  # fmt: skip
    media.put_table(root / "LongVideoBench.tsv", table)
  else:
    table = []
    for row in rows:
      padded = [*row["candidates"], *["N/A"] * 5][:5]
      options = {f"option{n}": text for n, text in enumerate(padded)}
      table.append({k: v for k, v in row.items() if k != "candidates"} | options)
    media.put_parquet(root / "validation-00000-of-00001.parquet", table)
  return rows


def mlvu_rows():
  """24 questions: a broken truth twice, a right option that stands there twice."""
  rows = {task: [] for task in MLVU_TASKS}
  for place, task in enumerate(MLVU_TASKS):
    for n in range(4 if task in ("plotQA", "needle", "count") else 3):
      options = [f"{(n + k) * 3 + place}" for k in range(4)]
      answer = options[(place + n) % 4]
      if task == "needle" and n < 2:
        answer = "none of them"
      if task == "count" and n < 2:
        options[3] = answer = options[1]
      rows[task].append(
        {
          "video": f"{task}_{n}.mp4",
          "duration": 512.3 if n else 480,
          "question": f'How many times does "juggling {n}" occur?',
          "candidates": options,
          "answer": answer,
          "question_type": "findNeedle" if task == "needle" else task,
        }
      )
  return rows


def write_mlvu(root, form="json"):
  rows = mlvu_rows()
  flat = [(k, task, row) for k, task in enumerate(MLVU_TASKS, 1) for row in rows[task]]
  for place, (k, task, row) in enumerate(flat):
    media.put_clip(root / "MLVU" / "video" / f"{k}_{task}" / row["video"], place)
  if form == "json":
    for k, task in enumerate(MLVU_TASKS, 1):
      media.put_json(root / "json" / f"{k}_{task}.json", rows[task])
  elif form == "tsv":
    table = [
      {"task_type": task, "prefix": f"./MLVU/video/{k}_{task}", "index": n}
      | row | {"candidates": str(row["candidates"])}
      for n, (k, task, row) in enumerate(flat)
    ]  # fmt: skip
    media.put_table(root / "MLVU_MCQ.tsv", table)
  else:
    table = []
    for n, (_, task, row) in enumerate(flat):
      places = [i for i, text in enumerate(row["candidates"]) if text == row["answer"]]
      listed = "\n".join(f"({x}) {t}" for x, t in zip("ABCD", row["candidates"], strict=True))
      table.append(
        {
          "video_name": row["video"],
          "duration": float(row["duration"]),
          "question": f"{row['question']}\n{listed}",
          "candidates": row["candidates"],
          "answer": "ABCD"[places[-1]] if places else "@",
          "task_type": task,
          "question_id": str(n),
        }
      )
    media.put_parquet(root / "test-00000-of-00001.parquet", table)
  return rows


def vstar_rows(form="new"):
  """20 items of 10 clips; whole and broken seconds, an interval without a whole second."""
  rows = []
  for n in range(20):
    start = 0.5 + n % 3
    end = start + (0.3 if n == 7 else 2.0)
    boxes = [
      {"timestamp": second, "frame_index": second * 4, "xmin": 6 + n}
      | {"ymin": 4, "xmax": 30, "ymax": 40}
      for second in range(1 + n % 3, 3 + n % 3)
    ]  # fmt: skip
    if form == "old":
      sides = ("xmin", "ymin", "xmax", "ymax")
      boxes = [
        {f"{box['timestamp']}_{box['frame_index']}": {side: box[side] for side in sides}}
        for box in boxes
      ]
    rows.append(
      {
        "vid": f"v&{n // 2}",
        "domain": ("Daily Life", "Sports")[n % 2],
        "fps": 4.0,
        "width": media.WIDTH,
        "height": media.HEIGHT,
        "frame_count": (16, 240, 480, 720)[n % 4],
        "question": f"What does girl {n} pick up?",
        "chain": "<think>..<think>",
        "object": "cup",
        "answer": "a cup",
        "temporal_question": f"When does girl {n} pick up the cup?",
        "timestamps": [start, end],
        "spatial_question": "Where is the cup while she picks it up?",
        "spatial_question_2": "Where is the cup that the girl picks up?",
        "bboxes": boxes,
      }
    )
  return rows


def write_vstar(root, form="new"):
  rows = vstar_rows(form)
  media.put_json(root / "V_STaR_test.json", rows)
  for place, row in enumerate(rows):
    folder = ("", "part 2")[place // 2 % 2]
    media.put_clip(root / "videos" / folder / f"{row['vid']}.mp4", place)
  return rows


WRITERS = {
  "videomme": write_videomme,
  "videommmu": write_videommmu,
  "videommmu_question_only": write_videommmu_question_only,
  "worldsense": write_worldsense,
  "longvideobench": write_longvideobench,
  "mlvu": write_mlvu,
  "vstar": write_vstar,
  "mathvista": pictures.write_mathvista,
  "mathverse": pictures.write_mathverse,
}


if __name__ == "__main__":
  command = argparse.ArgumentParser(description=__doc__)
  command.add_argument("set", choices=WRITERS)
  command.add_argument("root", type=pathlib.Path)
  command.add_argument("--form", default="")
  given = command.parse_args()
  WRITERS[given.set](given.root, given.form or FORMS[given.set][0])
