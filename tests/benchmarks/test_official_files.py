"""Files that are not what they should be: one line that names them, for every set and form."""

import base64

import benchmark_files
import benchmark_media as media
import pytest

from rmsd_jax.benchmarks import catalogue, official_files
from rmsd_jax.benchmarks.__main__ import main
from rmsd_jax.benchmarks.item import Picture, without_letters
from rmsd_jax.core.errors import UserError

FILES = {
  "videomme": "videomme/test-00000-of-00001.parquet",
  "videommmu": "Perception/test-00000-of-00001.parquet",
  "videommmu_question_only": "Adaptation/test-00000-of-00001.parquet",
  "worldsense": "worldsense_qa.json",
  "longvideobench": "lvb_val.json",
  "mlvu": "json/2_needle.json",
  "mathvista": "testmini.json",
  "mathverse": "testmini.json",
  "vstar": "V_STaR_test.json",
}
JSON_FILES = FILES | {
  "videomme": "videomme.json",
  "videommmu": "videommmu.json",
  "videommmu_question_only": "videommmu.json",
}
WRONG = ("", "{", "[]", "[1]", '{"a": 1}', '[{"question": "?"}]', "null", "\x00", '{"a": {"b": 2}}')


def prepare(name, root, out):
  main(["prepare", name, str(root), "--protocol", "paper-64f", "--out", str(out)])


@pytest.mark.parametrize("name", benchmark_files.FORMS)
def test_a_folder_that_is_not_the_sets_is_refused(name, tmp_path):
  with pytest.raises(UserError, match="is no folder"):
    prepare(name, tmp_path / "none", tmp_path / "out")
  (tmp_path / "set").mkdir()
  with pytest.raises(UserError, match="holds none of the set's files"):
    prepare(name, tmp_path / "set", tmp_path / "out")


@pytest.mark.parametrize("name", benchmark_files.FORMS)
@pytest.mark.parametrize("text", WRONG)
def test_a_damaged_file_is_told_in_one_line(name, text, tmp_path):
  path = tmp_path / "set" / FILES[name]
  path.parent.mkdir(parents=True)
  path.write_text(text, "utf-8")
  with pytest.raises(UserError) as told:
    prepare(name, tmp_path / "set", tmp_path / "out")
  assert str(tmp_path / "set") in str(told.value) and "\n" not in str(told.value)
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", JSON_FILES)
@pytest.mark.parametrize("value", [None, 7, [], {}, "text"])
def test_values_of_other_kinds_never_end_in_a_traceback(name, value, tmp_path):
  """Each column in turn, in the first row."""
  benchmark_files.WRITERS[name](tmp_path / "set", "new" if name == "vstar" else "json")
  path = tmp_path / "set" / JSON_FILES[name]
  whole = official_files._json(path.read_text("utf-8"), path)
  first = whole[0] if isinstance(whole, list) else next(iter(whole.values()))
  for number, key in enumerate(list(first)):
    kept, first[key] = first[key], value
    media.put_json(path, whole)
    try:
      prepare(name, tmp_path / "set", tmp_path / f"out{number}")
    except UserError as error:
      assert "\n" not in str(error)
    first[key] = kept


def test_an_item_that_stands_there_twice_is_refused(tmp_path):
  rows = benchmark_files.longvideobench_rows()
  media.put_json(tmp_path / "lvb_val.json", [*rows, rows[0]])
  with pytest.raises(UserError, match="item 'zz0_0' stands there twice"):
    catalogue.the("longvideobench").read(tmp_path)


@pytest.mark.parametrize(
  "text, message",
  [
    ("a\tb\n1\n", "row 2 has more or fewer cells"),
    ("a\tb\n1\t2\t3\n", "row 2 has more or fewer cells"),
    ('a\tb\n"1\t2\n', "is no table with tabs"),
  ],
)
def test_a_broken_table_is_refused(text, message, tmp_path):
  (tmp_path / "t.tsv").write_text(text, "utf-8")
  with pytest.raises(UserError, match=message):
    official_files.rows(tmp_path / "t.tsv")


def test_cells_with_tabs_quotes_and_lines_are_read(tmp_path):
  rows = [{"a": 'x\t"y"\nz', "b": "é"}, {"a": "", "b": "2"}]
  media.put_table(tmp_path / "t.tsv", rows)
  assert official_files.rows(tmp_path / "t.tsv") == [rows[0], {"b": "2"}]


@pytest.mark.parametrize(
  "value, texts",
  [
    (["a", 1], ["a", "1"]),
    ('["a", "b"]', ["a", "b"]),
    ("['it''s', \"b\"]", ["its", "b"]),
    ("['A. x', 'B. y']", ["A. x", "B. y"]),
    ("[]", []),
    ("", []),
    (None, []),
  ],
)
def test_lists_are_read_as_json_and_as_python_write_them(value, texts, tmp_path):
  assert official_files.texts(value, tmp_path) == texts


@pytest.mark.parametrize("value", ["a, b", "__import__('os')", "{'a': 1}", 7, "[" * 3000])
def test_what_is_no_list_is_refused(value, tmp_path):
  with pytest.raises(UserError, match="is not a list"):
    official_files.texts(value, tmp_path)


@pytest.mark.parametrize("form, end", [("PNG", "png"), ("JPEG", "jpg"), ("GIF", "gif"),
                                       ("WEBP", "webp")])  # fmt: skip
def test_pictures_inside_a_table_keep_their_bytes(form, end, tmp_path):
  content = media.picture(1, form)
  wanted = Picture("image", (f"images/7.{end}",), content)
  as_text = base64.b64encode(content).decode()
  for value in (as_text, content, {"bytes": content, "path": None}):
    assert official_files.embedded(value, "7", tmp_path) == wanted
  assert official_files.embedded("images/3.jpg", "7", tmp_path).places == ("images/3.jpg",)


@pytest.mark.parametrize("value", ["no picture", "QUJD", b"abc", {"bytes": None, "path": None}, 7])
def test_what_is_no_picture_is_refused(value, tmp_path):
  with pytest.raises(UserError, match="holds no picture"):
    official_files.embedded(value, "7", tmp_path)


def test_a_path_that_leaves_the_folder_is_no_file(tmp_path):
  (tmp_path / "set").mkdir()
  (tmp_path / "secret.mp4").write_bytes(b"x")
  folder = official_files.Folder(tmp_path / "set")
  assert folder.path(("../secret.mp4",)) is None
  assert folder.path((str(tmp_path / "secret.mp4"),)) is None


@pytest.mark.parametrize(
  "shown, texts",
  [
    (["A. cat", "B. dog"], ("cat", "dog")),
    (["(A) cat", "(B) dog"], ("cat", "dog")),
    (["A: cat", "B: dog"], ("cat", "dog")),
    (["A cat", "B dog"], ("A cat", "B dog")),
    (["A. cat", "C. dog"], ("A. cat", "C. dog")),
    (["cat"], ("cat",)),
    ([], ()),
  ],
)
def test_letters_are_taken_off_where_all_have_theirs(shown, texts):
  assert without_letters(shown) == texts
