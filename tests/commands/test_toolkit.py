"""The commands for people who never train: JSON Lines in, words, tables and a page out."""

import json
import pathlib
import sys
import types

import pytest
import small_records

from rmsd_jax import cli
from rmsd_jax import pool as command
from rmsd_jax.core.errors import UserError
from rmsd_jax.tasks import quality, registry
from rmsd_jax.teacher import importers

TASKS = sorted(registry.TASKS)


def call(capsys, *args):
  parsed = command.parser().parse_args(list(map(str, args)))
  parsed.run(parsed)
  return capsys.readouterr().out


@pytest.fixture(scope="module")
def file(tmp_path_factory):
  """Questions of every task and one unusable line; no media, no tokenizer."""
  values = [*map(small_records.of_task, TASKS), "{"]
  return small_records.write(tmp_path_factory.mktemp("files") / "pool.jsonl", values)


def test_score_says_what_it_wrote_and_what_it_left_out(file, tmp_path, capsys):
  out = tmp_path / "new" / "scores.jsonl"
  said = call(capsys, "score", file, "--out", out, "--workers", 1, "--max-bad-share", 0.5)
  assert f"40 responses scored by rules {quality.SCORER_VERSION!r} into {out}" in said
  assert f"1 lines in quarantine (RecordFault 1); reasons in {out}.quarantine.jsonl" in said
  assert len(out.read_text().splitlines()) == len(TASKS)


def test_tolerances_change_scores_and_the_rules_name(tmp_path, capsys):
  made = small_records.of_task("numerical", answer=100.0)
  made["responses"] = [{"text": "<think>x</think><answer>104</answer>"}]
  file, version = (
    small_records.write(tmp_path / "pool.jsonl", [made]),
    quality.SCORER_VERSION,
  )
  for flags, name, content in (
    ((), version, 0.0),
    (("--eps-abs", 4), f"{version} eps_abs=4", 1.0),
    (("--eps-rel", 0.03), f"{version} eps_rel=0.03", 0.0),
  ):
    out = tmp_path / f"{name}.jsonl"
    said = call(capsys, "score", file, "--out", out, "--workers", 1, *flags)
    assert f"1 responses scored by rules {name!r}" in said
    entry = json.loads(out.read_text())
    assert (entry["scorer"], entry["responses"][0]["content"]) == (name, content)
  figures = json.loads(call(capsys, "report", file, "--json", "--eps-abs", 4))
  assert figures["numerical"]["mean"] == 1
  with pytest.raises(UserError, match="eps_rel -1.0: a tolerance must be 0 or more"):
    call(capsys, "score", file, "--out", tmp_path / "x", "--eps-rel", -1)


def test_a_report_of_a_file_is_a_table_a_page_or_json(file, tmp_path, capsys):
  said = call(capsys, "report", file, "--html", tmp_path / "page")
  table, teachers = said.split("\n\n")[:2]
  assert [line.split("|")[1].strip() for line in table.splitlines()[2:]] == [*TASKS, "all"]
  names = [line.split("|")[1].strip() for line in teachers.splitlines()[:4]]
  assert names[0] == "teacher" and names[2:] == ["big", "small"]
  assert "1 unusable lines are left out, the first: " in said and "line 11: not JSON" in said
  assert (tmp_path / "page" / "index.html").is_file() and "nan" not in said
  figures = json.loads(call(capsys, "report", file, "--json"))
  assert figures["all"]["questions"] == 10 and figures["ocr"]["mean"] == 0.25
  assert figures["teachers"]["small"]["violations"] == 1
  assert figures["ocr"]["rouge"] is None and figures["open_ended"]["mean"] is None
  assert figures["open_ended"]["rouge"] == pytest.approx(0.5)  # 1, 0, 0 and 1


def test_what_cannot_be_reported_is_one_error(file, tmp_path, capsys):
  (tmp_path / "page").write_text("")
  with pytest.raises(UserError, match="--html .*page is a file; name a folder"):
    call(capsys, "report", file, "--html", tmp_path / "page")
  with pytest.raises(UserError, match="--html .*page/new: no folder can be made there"):
    call(capsys, "report", file, "--html", tmp_path / "page" / "new")
  silent = small_records.write(tmp_path / "0.jsonl", [small_records.of_task("ocr", responses=[])])
  assert call(capsys, "report", silent).startswith("no responses\n")
  with pytest.raises(UserError, match="no responses in .*0.jsonl, so there is nothing to show"):
    call(capsys, "report", silent, "--html", tmp_path / "new")
  with pytest.raises(UserError, match="no file .*nowhere.jsonl"):
    call(capsys, "report", tmp_path / "nowhere.jsonl")


def test_check_prints_all_it_found_and_fails_in_one_line(file, tmp_path, capsys, monkeypatch):
  said = call(capsys, "check", file, "--max-bad-share", 0.5)
  assert said.startswith("11 lines, 10 usable: ") and "  schema: not JSON" in said
  monkeypatch.setattr(sys, "argv", ["pool", "check", str(file)])
  with pytest.raises(SystemExit) as ended:
    cli.run(command.main)
  captured = capsys.readouterr()
  assert ended.value.code == 2 and "  schema: not JSON" in captured.out
  (message,) = captured.err.splitlines()
  assert message.startswith(
    "error: 1 of 11 lines are unusable, more than the allowed share of 0.01"
  )
  with pytest.raises(UserError, match="--k -1: give the number of responses"):
    call(capsys, "check", file, "--k", -1)
  with pytest.raises(UserError, match="bad_share is 2.0; a share is between 0 and 1"):
    call(capsys, "check", file, "--max-bad-share", 2)


def test_what_import_writes_can_be_checked(tmp_path, capsys):
  items = [
    {"problem": "<image>How many?", "problem_type": kind, "data_type": "image", "options": [],
     "images": ["1.png"], "answer": "<answer>4</answer>"}
    for kind in ("numerical", "math", "segmentation")
  ]  # fmt: skip
  (tmp_path / "items.json").write_text(json.dumps(items))
  out = tmp_path / "pool.jsonl"
  given = ["--format", "onethinker", tmp_path / "items.json", "--out", out]
  said = call(capsys, "import", *given, "--media-root", tmp_path / "media")
  assert f"2 prompts in {out} (math 1, numerical 1)" in said
  assert "1 lines in quarantine (problem_type 'segmentation' 1)" in said
  assert "1 of 1 media files are not there; is --media-root" in said
  (tmp_path / "media").mkdir()
  (tmp_path / "media" / "1.png").write_bytes(b"x")
  said = call(capsys, "check", out)
  assert "2 lines, 2 usable: train math 1, train numerical 1" in said
  assert "responses: 0, at most 0 per prompt" in said


def test_another_format_is_one_entry_of_the_table(tmp_path, capsys, monkeypatch):
  def convert(source, out, rules, *, media_root, split):
    record = small_records.of_task("math", split=split)
    assert rules.validate("math", record["answer"], []) is None and media_root == ""
    small_records.write(pathlib.Path(out), [record])
    return importers.Imported({"math": 1}, {"form": 2}, media=1, missing=1)

  toy = types.ModuleType("toy_format")
  toy.convert = convert
  monkeypatch.setitem(sys.modules, "toy_format", toy)
  monkeypatch.setitem(importers.IMPORTERS, "toy", "toy_format")
  out = tmp_path / "pool.jsonl"
  said = call(capsys, "import", "--format", "toy", "any.file", "--out", out, "--split", "test")
  assert f"1 prompts in {out} (math 1)" in said and "2 lines in quarantine (form 2)" in said
  assert json.loads(out.read_text())["split"] == "test"
  with pytest.raises(UserError, match="invalid choice: 'toys' .*onethinker.*toy"):
    command.parser().parse_args(["import", "--format", "toys", "any.file", "--out", str(out)])


@pytest.mark.parametrize("name", ["score", "report", "check", "import"])
def test_help_names_every_flag(name, capsys):
  with pytest.raises(SystemExit) as ended:
    command.parser().parse_args([name, "--help"])
  text = capsys.readouterr().out
  assert ended.value.code == 0
  flags = {
    "score": ("--out", "--workers", "--max-bad-share"),
    "report": ("--split", "--json", "--html", "--workers"),
    "check": ("--against", "--k", "--max-bad-share"),
    "import": ("--format", "--out", "--media-root", "--split"),
  }
  assert all(flag in text for flag in flags[name])
