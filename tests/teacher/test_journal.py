"""The journal: what was added is there again, whole lines only, whatever interrupts the writing."""

import json

import pytest

from rmsd_jax.core.errors import UserError
from rmsd_jax.teacher import journal
from rmsd_jax.teacher.journal import Entry, Journal

SETTINGS = {"model": "m", "temperature": 1.0}


def entry(id_, text="<answer>\u00e9\r\n</answer>", finish_reason="stop"):
  return Entry(id_, "0f3a", text, finish_reason, 100, 50)


class FullDisk:
  """A file on a disk that takes half of what is written."""

  def __init__(self, file):
    self.file = file

  def write(self, line):
    self.file.write(line[: len(line) // 2])
    raise OSError(28, "No space left on device")

  def __getattr__(self, name):
    return getattr(self.file, name)


def test_what_was_added_is_read_again(tmp_path):
  path = tmp_path / "journal.jsonl"
  assert journal.read_entries(path, SETTINGS) == [] and not path.exists()
  given = [entry("1"), entry("2", "", "content_filter"), entry("1")]
  with Journal(path, SETTINGS) as first:
    for one in given[:2]:
      first.add(one)
  with Journal(path, SETTINGS) as second:
    assert second.entries == given[:2]
    second.add(given[2])
  assert journal.read_entries(path, SETTINGS) == given


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_a_torn_last_line_is_dropped_and_leaves_no_trace(tmp_path, cut):
  path = tmp_path / "journal.jsonl"
  with Journal(path, SETTINGS) as first:
    first.add(entry("1"))
    first.add(entry("2"))
  path.write_bytes(path.read_bytes()[:-cut])
  torn = path.read_bytes()
  assert journal.read_entries(path, SETTINGS) == [entry("1")] and path.read_bytes() == torn
  with Journal(path, SETTINGS) as second:
    second.add(entry("3"))
  assert journal.read_entries(path, SETTINGS) == [entry("1"), entry("3")]
  assert all(map(json.loads, path.read_bytes().splitlines()))


def test_a_full_disk_leaves_no_half_line(tmp_path):
  path = tmp_path / "journal.jsonl"
  with Journal(path, SETTINGS) as written:
    written.add(entry("1"))
    whole, written._file = written._file, FullDisk(written._file)
    with pytest.raises(UserError, match="cannot be written .No space left on device.; make room"):
      written.add(entry("2"))
    written._file = whole
    written.add(entry("3"))
  assert journal.read_entries(path, SETTINGS) == [entry("1"), entry("3")]


def test_settings_bind_once_something_was_paid_for(tmp_path):
  path = tmp_path / "journal.jsonl"
  with Journal(path, {"model": "mistyped"}):
    pass
  with Journal(path, SETTINGS) as begun:
    begun.add(entry("1"))
  with pytest.raises(
    UserError, match=r"\(temperature 1.0 -> 0.5, top_p None -> 0.9\); take the old"
  ):
    Journal(path, {"model": "m", "temperature": 0.5, "top_p": 0.9})


WRONG = '{"id": "1", "prompt": "0", "text": "", "finish_reason": "stop", "read": 1, "written": "2"}'


@pytest.mark.parametrize("line", ["", "[]", "3", '{"id": "1"}', '{"journal": 1', WRONG])
def test_what_is_no_journal_is_refused(tmp_path, line):
  path = tmp_path / "journal.jsonl"
  with Journal(path, SETTINGS) as begun:
    begun.add(entry("1"))
  whole = path.read_text().splitlines()
  for number in (1, 2):
    lines = [*whole[: number - 1], line, *whole[number:]]
    path.write_text("".join(one + "\n" for one in lines))
    with pytest.raises(UserError, match=f"line {number} is no line of a journal"):
      journal.read_entries(path, SETTINGS)
