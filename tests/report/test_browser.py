"""The browser of rollouts: what is in the page, that texts stay texts, and what its script does."""

import base64
import html
import io
import json
import pathlib
import re
import shutil
import subprocess

import numpy as np
import PIL.Image
import pytest
import tiny_run

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import rows, store
from rmsd_jax.report import __main__ as report
from rmsd_jax.report import browser
from rmsd_jax.report.page import Page
from rmsd_jax.training import showing

TEMPLATES = pathlib.Path(report.__file__).parent / "templates"
HOSTILE = '</code></article><script>alert("x")</script> & \u202e \ud800 <b>bold</b>'


def rollout(reward=0.5, score=0.1, **changes):
  return {
    "reply": "<think>why</think><answer>A</answer>", "tokens": 12, "finished": True,
    "terms": {"discriminator": score, "outer": 1.0, "inner": 1.0, "content": 0.25},
    "reward": reward, "advantage": reward - 0.5, "teacher": "<think>t</think><answer>B</answer>",
  } | changes  # fmt: skip


def line(step, rollouts, task="multiple_choice", **changes):
  return {
    "step": step, "row": 0, "id": f"row {step}", "clip": "clip 1", "task": task,
    "question": "What is <b>?", "options": ["A. <i>", "B. 2"], "answer": {"index": 1},
    "times": [[0.0, 0.5], [1.0, 1.5]], "rollouts": rollouts,
  } | changes  # fmt: skip


def write(folder, lines):
  folder.mkdir(parents=True, exist_ok=True)
  texts = [one if isinstance(one, str) else json.dumps(one) for one in lines]
  (folder / showing.FILE).write_text("".join(f"{text}\n" for text in texts))
  (folder / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "rollout/length": 3}\n')


def page_of(top, monkeypatch):
  monkeypatch.setattr(report.plots, "png", lambda figure: b"")  # drawing is tested elsewhere
  return report.write_report(str(top), "test")[0].read_text("utf-8")


def articles(page):
  """Attributes of every entry, and its inside."""
  found = re.findall(r'<article class="([^"]*)"([^>]*)>(.*?)</article>', page, re.DOTALL)
  return [
    (
      kind.split(),
      {key: html.unescape(value) for key, value in re.findall(r'data-(\w+)="([^"]*)"', attributes)},
      inside,
    )
    for kind, attributes, inside in found
  ]


def test_entries_carry_what_they_are_filtered_and_sorted_by(tmp_path, monkeypatch):
  write(
    tmp_path / "rl",
    [
      line(10, [rollout(0.2, -1.5), rollout(0.9, 2.0)]),
      line(20, [rollout(0.3, 0.0, finished=False, teacher=None)], "a\"b'<c"),
      line(30, [rollout(0.6, 0.4)], "ocr"),
    ],
  )
  page = page_of(tmp_path, monkeypatch)
  found = articles(page)
  assert [data["task"] for _, data, _ in found] == ["multiple_choice"] * 2 + ["a\"b'<c", "ocr"]
  assert [(data["step"], float(data["reward"])) for _, data, _ in found] == [
    ("10", 0.2), ("10", 0.9), ("20", 0.3), ("30", 0.6)
  ]  # fmt: skip
  # D of a rollout without an end is not a score.
  assert [data["score"] for _, data, _ in found] == ["-1.5", "2.0", "", "0.4"]
  assert [(data["first"], data["last"]) for _, data, _ in found] == [
    ("1", "0"), ("1", "0"), ("0", "0"), ("0", "1")
  ]  # fmt: skip
  assert [kind[1:] for kind, _, _ in found] == [["first"], ["first"], [], ["last"]]
  options = re.search(r'<select id="samples-task">(.*?)</select>', page).group(1)
  values = [html.unescape(value) for value in re.findall(r'<option value="([^"]*)"', options)]
  assert values == ["", "a\"b'<c", "multiple_choice", "ocr"]
  assert 'id="samples-run"' not in page, "one run needs no choice"
  first, cut = found[0][2], found[2][2]
  for words in ("What is &lt;b&gt;?", "A. &lt;i&gt;", "2 frame pairs, 0.0 to 1.5 s",
                "content 0.250", "reward <b>0.200</b>", "advantage <b>\u22120.300</b>",
                "D -1.500"):  # fmt: skip
    assert words in first
  assert "cut off" in cut and "none was matched" in cut and "D \u2013" in cut
  assert not re.findall(r'(?:src|href|action)="(?!data:|#)', page) and "://" not in page


@pytest.mark.parametrize("field", ["reply", "teacher", "question", "id", "clip", "task", "options"])
def test_texts_that_hold_html_stay_texts(tmp_path, monkeypatch, field):
  if field in ("reply", "teacher"):
    made = line(1, [rollout(**{field: HOSTILE})])
  else:
    made = line(1, [rollout()], **{field: [HOSTILE] if field == "options" else HOSTILE})
  write(tmp_path / "rl", [made])
  page = page_of(tmp_path, monkeypatch)
  assert "<script>alert" not in page and "<b>bold" not in page
  assert "&lt;script&gt;alert(" in page and "\u202e" not in page
  assert len(articles(page)) == page.count("<article") == page.count("</article>") == 1


def test_damaged_lines_are_one_line_that_names_the_file(tmp_path, monkeypatch):
  good = line(5, [rollout()])
  lacking = {key: value for key, value in good.items() if key != "rollouts"}
  write(
    tmp_path / "rl",
    [good, "{", "[1]", lacking, line(5, [{"reply": "x"}]), line(6, [rollout(tokens="many")]), good],
  )
  write(tmp_path / "rl_two", [good, "\x00"])
  write(tmp_path / "rl_three", [good])
  with (tmp_path / "rl_three" / showing.FILE).open("a") as file:
    file.write('{"step": 6, "torn')  # a kill while writing
  page = page_of(tmp_path, monkeypatch)
  assert len(articles(page)) == 4
  said = re.findall(r'<p class="missing">([^<]*samples.jsonl[^<]*)</p>', page)
  assert said == [
    "Left out. rl/samples.jsonl is damaged in 5 lines, the first is line 2.",
    "Left out. rl_two/samples.jsonl is damaged in line 2.",
  ]
  assert re.findall(r"<option", re.search(r'id="samples-run">(.*?)</select>', page).group(1)) == (
    ["<option"] * 4
  )


@pytest.mark.parametrize("lines", [None, [], ["{"], [line(1, [])]])
def test_a_run_without_rollouts_says_so_and_has_no_browser(tmp_path, monkeypatch, lines):
  write(tmp_path / "rl", lines or [])
  if lines is None:
    (tmp_path / "rl" / showing.FILE).unlink()
  page = page_of(tmp_path, monkeypatch)
  assert "rl/samples.jsonl shows no rollout: samples.every is 0" in page
  assert 'id="samples-form"' not in page and "<script" not in page


def test_folders_without_stage_2_have_no_such_section(tmp_path, monkeypatch):
  write(tmp_path / "sft", [])
  (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "loss": 3}\n')
  page = page_of(tmp_path, monkeypatch)
  assert "s-samples" not in page and "samples.jsonl" not in page


def test_runs_of_earlier_versions_are_ordered_by_advantage(tmp_path, monkeypatch):
  old = rollout()
  del old["reward"]
  write(tmp_path / "rl", [line(1, [old | {"advantage": value} for value in (0.5, -1.5)])])
  page = page_of(tmp_path, monkeypatch)
  assert [data["reward"] for _, data, _ in articles(page)] == ["0.5", "-1.5"]
  assert "goes by the advantage" in page and "reward <b>\u2013</b>" in page


def test_values_that_are_not_finite_are_dashes(tmp_path, monkeypatch):
  nan = float("nan")
  write(tmp_path / "rl", [line(1, [rollout(nan, nan, advantage=nan)], times=[[nan, nan]])])
  ((_, data, inside),) = articles(page_of(tmp_path, monkeypatch))
  assert (data["reward"], data["score"]) == ("0.0", "")
  assert "nan" not in inside and "advantage <b>\u2013</b>" in inside


def test_of_many_the_first_and_last_steps_and_the_ends_of_the_order_are_kept(tmp_path):
  page = Page(tmp_path)
  steps = range(50, 1001, 50)
  made = [
    line(step, [rollout(step + i, 1000.0 if i == 30 else i / 100) for i in range(64)])
    for step in steps
  ]
  write(tmp_path / "rl", made)
  runs = report.findings.find_runs(tmp_path, "test")
  kept = browser.entries(page, runs)
  assert len(kept) == browser.MAX_ENTRIES
  of = {step: [one for one in kept if one["step"] == step] for step in {x["step"] for x in kept}}
  assert {50, 1000} <= of.keys() and len(of) == browser.MAX_STEPS
  for step, some in of.items():
    rewards = [one["reward"] - step for one in some]
    assert {0, 1, 2, 30, 61, 62, 63} <= set(rewards) and rewards == sorted(rewards)
  assert page.missing["samples"][0].startswith(f"{64 * 20 - 240} of {64 * 20} rollouts")
  assert all(one["first"] == (one["step"] == 50) for one in kept)


def test_few_are_all_kept_in_their_order(tmp_path):
  page = Page(tmp_path)
  write(tmp_path / "rl", [line(s, [rollout(-s), rollout(s)]) for s in (3, 6, 9)])
  kept = browser.entries(page, report.findings.find_runs(tmp_path, "test"))
  assert [one["reward"] for one in kept] == [-3, 3, -6, 6, -9, 9] and not page.missing


def test_a_long_reply_keeps_its_beginning_and_its_answer():
  text = "start " + "x" * 9000 + "<answer>C</answer>"
  short = browser.shortened(text)
  assert short.startswith("start xxx") and short.endswith("<answer>C</answer>")
  left_out = len(text) - browser.HEAD - browser.TAIL
  assert f"{left_out:,} characters" in short and len(short) < 3000
  assert browser.shortened("a\tb\nc") == "a\u00b7b\nc"


# A document of no more than what the script of the page asks for.
DOCUMENT = """
const wanted = JSON.parse(process.argv[2]);
const made = {};
const element = (id, more) => made[id] = Object.assign({ id, hidden: true, listeners: {},
  addEventListener(kind, what) { this.listeners[kind] = what; } }, more);
const children = wanted.entries.map((dataset, i) => ({ dataset, hidden: false, i }));
element("samples", { children, className: "", append(one) {
  children.splice(children.indexOf(one), 1); children.push(one); } });
for (const name of ["task", "steps", "order"]) element("samples-" + name, { value: "" });
element("samples-form"); element("samples-count"); element("samples-more");
const document = { getElementById: id => made[id] || null };
const state = () => ({ shown: children.filter(one => !one.hidden).map(one => one.i),
  count: made["samples-count"].textContent, more: !made["samples-more"].hidden,
  kind: made["samples"].className });
"""


def drive(page, *choices):
  """What the script of a page shows after each of some choices, {control: value} or "more"."""
  node = shutil.which("node")
  if node is None:
    pytest.skip("no node to run the page's script with")
  (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
  code = [DOCUMENT, script, "const seen = [state()];"]
  for choice in choices:
    if choice == "more":
      code.append('made["samples-more"].listeners.click();')
    else:
      for name, value in choice.items():
        code.append(f'made["samples-{name}"].value = {json.dumps(value)};')
      code.append('made["samples-task"].listeners.change();')
    code.append("seen.push(state());")
  code.append("console.log(JSON.stringify(seen));")
  entries = json.dumps({"entries": [data for _, data, _ in articles(page)]})
  done = subprocess.run(
    [node, "-", entries], input="\n".join(code), capture_output=True, text=True, check=True
  )
  return json.loads(done.stdout)


def test_the_script_filters_sorts_and_sets_first_against_last(tmp_path, monkeypatch):
  write(
    tmp_path / "rl",
    [
      line(1, [rollout(0.5, -2.0), rollout(-0.5, 3.0)]),
      line(2, [rollout(0.9, 9.0, finished=False)], "ocr"),
      line(3, [rollout(0.1, 0.0), rollout(0.7, -0.5)], "ocr"),
    ],
  )
  seen = drive(
    page_of(tmp_path, monkeypatch),
    {"task": "ocr"},
    {"task": "", "order": "worst"},
    {"order": "best"},
    {"order": "score"},
    {"order": "best", "steps": "both"},
    {"steps": "last", "task": "multiple_choice"},
    {"steps": "first"},
  )
  assert [one["shown"] for one in seen] == [
    [0, 1, 2, 3, 4], [2, 3, 4], [1, 3, 0, 4, 2], [2, 4, 0, 3, 1], [1, 3, 4, 0, 2],
    [4, 0, 3, 1], [], [0, 1],
  ]  # fmt: skip
  assert [one["kind"] for one in seen] == ["", "", "", "", "", "against", "", ""]
  assert [one["count"] for one in seen[:2]] == ["5 of 5", "3 of 3"]
  assert not any(one["more"] for one in seen)


def test_the_script_shows_twenty_and_more_on_demand(tmp_path, monkeypatch):
  write(tmp_path / "rl", [line(s, [rollout(i / 30) for i in range(30)]) for s in (1, 2)])
  seen = drive(page_of(tmp_path, monkeypatch), "more", "more", {"steps": "both"}, "more")
  assert [one["count"] for one in seen] == [f"{n} of 60" for n in (20, 40, 60, 40, 60)]
  assert [one["more"] for one in seen] == [True, True, False, True, False]


def test_a_broken_page_is_never_half_of_one(tmp_path):
  with pytest.raises(UserError, match="no score card; give the folder"):
    report.write_report(str(tmp_path), "test")


PAIRS = {  # what is read on what, at 4.5 : 1 or more (WCAG 2.2, success criterion 1.4.3)
  "page": ("ink", "muted", "link", "better", "worse"),
  "soft": ("muted",),
  "note": ("ink",),
  "good": ("good-ink",),
  "half": ("half-ink",),
  "bad": ("bad-ink",),
  "warn": ("warn-ink",),
}


def luminance(colour: str) -> float:
  digits = colour.lstrip("#") if len(colour) == 7 else "".join(2 * c for c in colour.lstrip("#"))
  parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
  linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
  return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_words_are_legible_on_light_and_on_dark_pages():
  page = (TEMPLATES / "page.html.jinja").read_text("utf-8")
  schemes = [
    dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block))
    for block in re.findall(r":root \{(.*?)\}", page, re.DOTALL)
  ]
  light, dark = schemes
  assert set(re.findall(r"var\(--([\w-]+)\)", page)) <= light.keys()
  assert dark.keys() == light.keys()
  for scheme in schemes:
    for ground, inks in PAIRS.items():
      for ink in inks:
        darker, lighter = sorted(luminance(scheme[name]) for name in (ground, ink))
        assert (lighter + 0.05) / (darker + 0.05) >= 4.5, (ground, ink)
  assert luminance(light["page"]) > 0.9 and luminance(dark["page"]) < 0.05


def of_run(tmp_path, names, pool):
  """A run of stage 2 on a pool, whose samples are of its first rows under these ids."""
  write(
    tmp_path / "rl", [line(10, [rollout(), rollout()], row=i, id=x) for i, x in enumerate(names)]
  )
  config = {"data": {"pool": str(pool), "split": "train"}, "tasks": {}}
  (tmp_path / "rl" / "config.json").write_text(json.dumps(config))


def test_frames_stand_beside_the_rollouts_once_for_each_prompt(tmp_path, monkeypatch):
  opened = store.open_pool(tiny_run.pool_folder(), "train")
  names = [opened[0].id, opened[1].id, "another"]
  of_run(tmp_path, names, tiny_run.pool_folder())
  page = page_of(tmp_path, monkeypatch)
  found = re.findall(r"\.film-(\d) { .*?url\(data:image/png;base64,([^)]*)\)", page)
  assert [number for number, _ in found] == ["0", "1"]
  shown = [re.findall(r'class="film film-(\d)"', inside) for _, _, inside in articles(page)]
  assert shown == [["0"], ["0"], ["1"], ["1"], [], []]  # row 2 has another id than "another"
  for (_, encoded), index in zip(found, (0, 1), strict=True):
    strip = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(encoded))))
    first = rows.unpack(opened[index])[0]
    height = len(strip)
    assert 0 < height <= browser.FRAME_HEIGHT
    np.testing.assert_array_equal(strip[:, : first.shape[1]], first[:height])


def test_a_pool_that_is_gone_leaves_the_rollouts_without_frames(tmp_path, monkeypatch):
  of_run(tmp_path, ["a"], tmp_path / "gone")
  page = page_of(tmp_path, monkeypatch)
  assert len(articles(page)) == 2 and 'class="film' not in page
  assert "Frames of rl&#39;s prompts, since its pool cannot be read" in page
