"""Folders of MathVista and MathVerse, small and made up; see benchmark_files."""

import base64

import benchmark_media as media

VERSIONS = (
  *("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"),
)  # fmt: skip
# question, choices, unit, precision, answer, question_type, answer_type
VISTA = (
  ("Which is tallest?", ["oak", "pine", "elm"], None, None, "pine", "multi_choice", "text"),
  ("Is it even?", ["Yes", "No"], None, None, "No", "multi_choice", "text"),
  ("Which twin?", ["145°", "35°", "145°", "55°"], None, None, "145°", "multi_choice", "text"),
  ("How old?", None, "years", None, "7", "free_form", "integer"),
  ("How many?", None, None, None, "1200", "free_form", "integer"),
  ("How high?", None, None, 1, "3.5", "free_form", "float"),
  ("What share?", None, None, 2, "0.25", "free_form", "float"),
  ("Which years?", None, None, None, "[2007, 2008]", "free_form", "list"),
)
# question, multi-choice or free-form, answer
VERSE = (
  ("Find x.\nChoices:\nA:3\nB:4\nC:5\nD:6", "multi-choice", "B"),
  ("Find y.\nChoices:\nA:30^\\circ\nB:45^\\circ\nC:60^\\circ", "multi-choice", "(C)"),
  ("Which hold?\nChoices:\nA:a\nB:b\nC:c\nD:d\nE:e\nF:f", "multi-choice", "C\nD"),
  ("True?\nChoices:\nA:True\nB:False", "multi-choice", "False"),
  ("Pick.\nChoice:\nA. 40\nB. 50\nC. 60", "multi-choice", "A"),
  ("How long is AB?", "free-form", "2\\sqrt{3}"),
  ("What angle?", "free-form", "35\u63b3"),
  ("What length?", "free-form", "12.5 cm"),
  ("What line?", "free-form", "y=2x+1"),
)


def vista_rows():
  """24 questions: each of VISTA three times."""
  rows = []
  for n in range(3 * len(VISTA)):
    question, choices, unit, precision, answer, kind, type_ = VISTA[n % len(VISTA)]
    rows.append(
      {
        "pid": str(901 + n),
        "question": f"{question} ({n})",
        "image": f"images/{901 + n}.jpg",
        "choices": choices,
        "unit": unit,
        "precision": precision,
        "answer": answer,
        "question_type": kind,
        "answer_type": type_,
        "metadata": {
          "split": "testmini",
          "task": ("figure question answering", "math word problem")[n % 2],
          "category": ("general-vqa", "math-targeted-vqa")[n % 2],
          "context": ("bar chart", "scatter plot")[n % 2],
          "grade": ("college", "elementary school")[n % 2],
          "language": ("english", "chinese")[n % 2],
          "source": "ChartQA",
          "skills": (["statistical reasoning"], ["arithmetic reasoning", "numeric common"])[n % 2],
          "img_width": 48,
          "img_height": 40,
        },
      }
    )  # fmt: skip
  return rows


def write_mathvista(root, form="json"):
  rows = vista_rows()
  queries = {row["pid"]: f"Hint: as told.\nQuestion: {row['question']}" for row in rows}
  if form == "json":
    for place, row in enumerate(rows):
      path = root / row["image"]
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(media.picture(place % 5, "JPEG"))
    own = {row["pid"]: {k: v for k, v in row.items() if k != "query"} for row in rows}
    media.put_json(root / "testmini.json", own)
    media.put_json(root / "query.json", queries)
  elif form == "parquet":
    table = [
      row | {"query": queries[row["pid"]]}
      | {"decoded_image": {"bytes": media.picture(n % 5, "JPEG"), "path": None}}
      for n, row in enumerate(rows)
    ]  # fmt: skip
    media.put_parquet(root / "data" / "testmini-00000-of-00001.parquet", table)
  else:
    table = []
    for n, row in enumerate(rows):
      choices = row["choices"]
      letter = "ABCDEFGH"[choices.index(row["answer"])] if choices else None
      about = row["metadata"]
      table.append(
        {
          "index": int(row["pid"]),
          # A picture that another row has is told by that row's index.
          "image": media.in_base64(n) if n < 20 else str(901 + n - 20),
          "question": queries[row["pid"]],
          "answer": row["answer"],
          "answer_option": letter,
          "choices": str(choices or []),
          **{name: row[name] for name in ("question_type", "answer_type", "precision", "unit")},
          **{name: about[name] for name in ("task", "context", "grade", "source", "category")},
          "skills": str(about["skills"]),
        }
      )
    media.put_table(root / "MathVista_MINI.tsv", table)
  return rows


def verse_rows():
  """9 problems in 5 versions, and Text Only."""
  rows, text_only = [], []
  for problem, (question, kind, answer) in enumerate(VERSE):
    metadata = {
      "split": "testmini",
      "source": "Geometry3K",
      "subject": ("Plane Geometry", "Functions", "Solid Geometry")[problem % 3],
      "subfield": ("Length", "Angle")[problem % 2],
    }
    for version in (*VERSIONS, "Text Only"):
      blank = version == "Vision Only"
      shown = "" if blank else question
      ask = "Please directly answer the question and provide the correct option letter, e.g., A, B."
      row = {
        "sample_index": str(9001 + len(rows) + len(text_only)),
        "problem_index": str(900 + problem),
        "problem_version": version,
        "question": shown,
        "image": f"images_version_{'5' if blank else '1-4'}/image_{900 + problem}.png",
        "answer": answer,
        "question_type": kind,
        "metadata": metadata,
        "query_wo": f"{ask}\nQuestion: {shown}" if shown else ask,
        "query_cot": f"Please first conduct reasoning.\nQuestion: {shown}",
      }
      if version == "Text Only":
        text_only.append(row | {"image": "", "metadata": str(metadata)})
      else:
        rows.append(row)
  return rows, text_only


def write_mathverse(root, form="json"):
  rows, text_only = verse_rows()
  if form == "json":
    for place, row in enumerate(rows):
      path = root / "images" / row["image"]
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(media.picture(place % 5))
    media.put_json(root / "testmini.json", rows)
    media.put_json(root / "testmini_text_only.json", text_only)
  elif form == "parquet":
    full = {row["problem_index"]: row["question"] for row in rows if row["question"]}
    table = [
      row | {"question_for_eval": full[row["problem_index"]]}
      | {"image": {"bytes": media.picture(n % 5), "path": None}}
      for n, row in enumerate(rows)
    ]  # fmt: skip
    media.put_parquet(root / "testmini" / "testmini-00000-of-00001.parquet", table)
  else:
    table = [
      {k: v for k, v in row.items() if k not in ("metadata", "question")} | row["metadata"]
      | {"index": n, "question": row["question"] or "Look at the picture."}
      | {"image": base64.b64encode(media.picture(n % 5)).decode()}
      for n, row in enumerate(rows)
    ]  # fmt: skip
    media.put_table(root / "MathVerse_MINIV.tsv", table)
  return rows
