"""MathVista: files, pictures inside tables, queries, and its score computed a second time."""

import benchmark_files
import benchmark_media as media
import benchmark_pictures
import pytest
from benchmark_runs import answer, prepared, records_of, scored

from rmsd_jax.benchmarks import catalogue
from rmsd_jax.benchmarks.preparing import protocol_of
from rmsd_jax.core.errors import UserError

SET = catalogue.the("mathvista")


@pytest.mark.parametrize("form", benchmark_files.FORMS["mathvista"])
def test_every_form_of_the_files_has_the_same_questions(form, tmp_path):
  rows = benchmark_pictures.write_mathvista(tmp_path, form)
  items = SET.read(tmp_path)
  assert [item.id for item in items] == [row["pid"] for row in rows]
  assert [list(item.options) for item in items] == [row["choices"] or [] for row in rows]
  assert [item.answer for item in items] == [row["answer"] for row in rows]
  assert [item.extra["precision"] for item in items] == [row["precision"] for row in rows]
  assert [item.extra["query"] for item in items] == [
    f"Hint: as told.\nQuestion: {row['question']}" for row in rows
  ]
  for item, row in zip(items, rows, strict=True):
    assert list(item.fields["skills"]) == row["metadata"]["skills"]


def test_pictures_of_a_table_are_written_and_shared_ones_are_found(tmp_path):
  _, folder, _ = prepared("mathvista", tmp_path, form="tsv")
  paths = [folder / record["media"][0]["path"] for record in records_of(folder)]
  assert paths[0].name == "901.png" and len(set(paths)) == 24
  assert paths[3].read_bytes() == media.picture(3)
  # Rows 20 to 23 tell the index of rows 0 to 3.
  assert paths[23].read_bytes() == media.picture(3)


def test_a_picture_of_a_row_that_is_not_there_is_refused(tmp_path):
  benchmark_pictures.write_mathvista(tmp_path, "tsv")
  table = tmp_path / "MathVista_MINI.tsv"
  table.write_text(table.read_text("utf-8").replace("\t904\t", "\t77777\t"), "utf-8")
  with pytest.raises(UserError, match="refers to row '77777'"):
    SET.read(tmp_path)


def test_queries_are_made_where_the_files_have_none(tmp_path):
  benchmark_pictures.write_mathvista(tmp_path)
  (tmp_path / "query.json").unlink()
  items = SET.read(tmp_path)
  hint = "Hint: Please answer the question"
  wanted = {
    0: f"{hint} and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
    "Question: Which is tallest? (0)\nChoices:\n(A) oak\n(B) pine\n(C) elm",
    3: f"{hint} requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end."
    "\nQuestion: How old? (3) (Unit: years)",
    5: f"{hint} requiring a floating-point number with one decimal place and provide the final "
    "value, e.g., 1.2, 1.3, 1.4, at the end.\nQuestion: How high? (5)",
    6: f"{hint} requiring a floating-point number with two decimal places and provide the final "
    "value, e.g., 1.23, 1.34, 1.45, at the end.\nQuestion: What share? (6)",
    7: f"{hint} requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], "
    "[1.2, 1.3, 1.4], at the end.\nQuestion: Which years? (7)",
  }
  protocol = protocol_of(SET, "vlmevalkit-64f", ())
  for place, text in wanted.items():
    assert SET.asks(items[place], protocol)[0].text == text
  forms = {"lmms-eval": wanted[0].split("\n", 1)[1] + "\n" + wanted[0].split("\n")[0]}
  forms["lmms-eval-solution"] = forms["lmms-eval"] + "\nSolution:"
  forms["lmms-eval-format"] = (
    "Which is tallest? (0)\nA. oak\nB. pine\nC. elm\nAnswer with the option's letter from the "
    "given choices directly."
  )
  for name, text in forms.items():
    changed = protocol_of(SET, "lmms-eval-64f", (f"prompt={name}",))
    assert SET.asks(items[0], changed)[0].text == text


RIGHT = {
  "text": "The answer is ({}).",
  "integer": "It is {} in all",
  "float": "x = {}",
  "list": "{}",
}


@pytest.mark.parametrize("extractor", ["rule-v1", "rule-v1:lev"])
def test_the_score_is_the_share_of_right_answers(extractor, tmp_path):
  _, folder, rows = prepared("mathvista", tmp_path, changes=(f"extractor={extractor}",))
  right = []

  def reply(place, record):
    row = rows[place]
    kind, good = row["answer_type"], place % 3 != 0
    if kind == "text" and not good:
      # A text near the right option: nearest in distance, and right by that rule alone.
      near = row["answer"][:-1] + "q"
      distances = [_distance(near, option) for option in row["choices"]]
      nearest = row["choices"][distances.index(min(distances))]
      right.append(float(extractor.endswith("lev") and nearest == row["answer"]))
      return near
    right.append(float(good))
    said = row["answer"] if good else "99"
    if kind == "text":
      # The first of two options of one text is as right as the last.
      said = "ABCD"[row["choices"].index(row["answer"])]
    return RIGHT[kind].format(said)

  card = scored(folder, answer(folder, tmp_path / "r.json", reply), tmp_path / "card")
  assert card["scores"]["MathVista"]["mean"] == pytest.approx(sum(right) / 24)
  for skill in ("statistical reasoning", "arithmetic reasoning"):
    own = [x for x, row in zip(right, rows, strict=True) if skill in row["metadata"]["skills"]]
    shown = card["breakdowns"]["MathVista"]["skills"][skill]
    assert shown["mean"] == pytest.approx(sum(own) / len(own))
  assert card["judge"] == "none" and card["protocol"]["extractor"] == extractor


def _distance(a, b):
  """Edit distance, letter by letter."""
  row = list(range(len(b) + 1))
  for i, x in enumerate(a, 1):
    before, row[0] = row[0], i
    for j, y in enumerate(b, 1):
      before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
  return row[-1]


def test_other_extractors_are_refused(tmp_path):
  with pytest.raises(UserError, match="'mmmu': this set has rule-v1, rule-v1:lev"):
    prepared("mathvista", tmp_path, changes=("extractor=mmmu",))
