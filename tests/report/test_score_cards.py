"""The section of score cards: a table for each protocol, every figure that of the card."""

import html
import json
import re

import pytest

from rmsd_jax.report import __main__ as report

PROTOCOL = {
  "name": "paper-64f", "prompt": "open-o3", "frames": 64, "extractor": "open-o3",
  "aggregation": "micro", "note": "our reading", "changed": [],
}  # fmt: skip


def score(mean, low, high, n=24):
  return {"mean": mean, "low": low, "high": high, "n": n}


def card(**changes):
  """As `benchmarks score` writes it."""
  run = {"name": "mine@best", "checkpoint": "best", "weights": "step 700", "way": "greedy",
         "workdir": "here/runs/rl", "responses_sha256": "0" * 64, "step": None}  # fmt: skip
  whole = {
    "set": "videomme", "title": "VideoMME", "items_hash": "aaaa", "size": 2700, "items": 30,
    "answered": 24, "missing": [{"id": "001-1", "reason": "no clip"}] * 25,
    "protocol": PROTOCOL, "protocol_title": "paper-64f", "protocol_hash": "1111",
    "prompt_hash": "2222", "scores": {"VideoMME": score(0.6531, 0.6, 0.7012)}, "aggregates": {},
    "missing_as_wrong": {"VideoMME": 0.52}, "unparsed": {"VideoMME": 0.125},
    "breakdowns": {"VideoMME": {"duration": {"long": score(0.25, None, None, 7)}}}, "further": {},
    "curves": {}, "judge": "none", "notes": ["without <i>sound</i>", ""], "differs": [],
    "replies": {"samples": 24}, "clips": None, "run": run, "software": {"commit": "c0ffee"},
  }  # fmt: skip
  return whole | changes


def write(folder, value):
  folder.mkdir(parents=True, exist_ok=True)
  text = value if isinstance(value, str) else json.dumps(value)
  (folder / "card.json").write_text(text)


def page_of(top):
  return report.write_report(str(top), "test")[0].read_text("utf-8")


def tables(page):
  """Heading -> rows of cells of the tables of scores."""
  part = page[page.index('<section id="s-cards">') :]
  part = part[: part.index("</section>")]
  bare = lambda text: html.unescape(re.sub(r"<[^>]*>", " ", text)).strip()
  found = re.findall(r'<h3 class="long">(.*?)</h3>\s*<div[^>]*><table class="cards">(.*?)</table>',
                     part, re.DOTALL)  # fmt: skip
  return {
    bare(heading): [
      [bare(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)]
      for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)[1:]
    ]
    for heading, table in found
  }


def test_a_row_says_what_was_scored_and_how(tmp_path):
  write(tmp_path / "deep" / "below" / "here", card())
  write(tmp_path / ".hidden", card(title="Other"))
  page = page_of(tmp_path)
  assert tables(page) == {
    "paper-64f": [
      ["VideoMME", "mine@best", "65.3 [60.0, 70.1]", "24 of 30 the set has 2700", "open-o3",
       "12.5 %", "step 700 of runs/rl"],
    ]
  }  # fmt: skip
  folded = re.search(r"<details><summary>VideoMME, mine@best.*?</details>", page, re.DOTALL).group()
  for words in ("VideoMME by duration", "<td>long</td><td>25.0</td><td>7</td>", "c0ffee", "1111",
                "25 without an answer; counted as wrong: VideoMME 52.0.", "001-1: no clip",
                "and 5 more, in deep/below/here/card.json", "&lt;i&gt;sound&lt;/i&gt;",
                "not looked at (--pool)"):  # fmt: skip
    assert words in folded
  assert folded.count("001-1") == 20 and "<details open" not in page
  assert '<h1 class="headline">Score cards of mine@best.</h1>' in page and 'href="#s-cards"' in page


def test_no_table_holds_two_protocols_judges_or_prompts(tmp_path):
  other = PROTOCOL | {"name": "vlmevalkit-64f"}
  cards = {
    "a": card(),
    "b": card(run=card()["run"] | {"name": "theirs"}),
    "c": card(protocol=other, protocol_title="vlmevalkit-64f", protocol_hash="3333"),
    "d": card(differs=["image_max_pixels 9 instead of 16"]),
    "e": card(judge="gpt"),
    "f": card(prompt_hash="4444"),
    "g": card(protocol_hash="5555"),
    # Protocols name what a set needs: another set's hash is another by right.
    "h": card(set="mlvu", title="MLVU", protocol_hash="6666", scores={"MLVU": score(0.1, 0, 0.2)}),
    "i": card(judge="none: what", set="vstar", scores={"When": score(0, 0, 0), "Where": None}),
  }
  for name, value in cards.items():
    write(tmp_path / name, value)
  found = tables(page_of(tmp_path))
  assert {heading: [row[:2] for row in rows] for heading, rows in found.items()} == {
    "paper-64f": [
      ["MLVU", "mine@best"], ["VideoMME", "mine@best"], ["When", "mine@best"],
      ["Where", "mine@best"], ["VideoMME", "theirs"],
    ],
    "paper-64f, judge gpt": [["VideoMME", "mine@best"]],
    "paper-64f, but image_max_pixels 9 instead of 16": [["VideoMME", "mine@best"]],
    "vlmevalkit-64f": [["VideoMME", "mine@best"]],
    "paper-64f, other settings under the same name (1111, prompts 4444)": [
      ["VideoMME", "mine@best"]
    ],
    "paper-64f, other settings under the same name (5555, prompts 2222)": [
      ["VideoMME", "mine@best"]
    ],
  }  # fmt: skip
  assert [row[2] for row in found["paper-64f"] if row[0] == "Where"] == ["-"]


@pytest.mark.parametrize(
  "damaged, words",
  [
    ("{", "bad/card.json is not a score card"),
    ("[]", "bad/card.json is not a score card"),
    ('{"a": 1}', "bad/card.json is not a score card"),
    (
      {key: value for key, value in card().items() if key != "scores"},
      "KeyError: &#39;scores&#39;",
    ),
    (card(scores={"VideoMME": {"mean": "inf", "low": 0, "high": 1}}), "bad/card.json is damaged"),
    (card(run=None), "bad/card.json is damaged"),
    (card(answered="many"), "bad/card.json is damaged"),
  ],
)
def test_damaged_cards_are_named_in_one_line(tmp_path, damaged, words):
  write(tmp_path / "bad", damaged)
  write(tmp_path / "good", card())
  page = page_of(tmp_path)
  (said,) = [one for one in re.findall(r'<p class="missing">(.*?)</p>', page) if "bad/" in one]
  assert words in said and len(tables(page)["paper-64f"]) == 1


def test_a_damaged_card_alone_makes_a_page_that_names_it(tmp_path):
  write(tmp_path, "{")
  page = page_of(tmp_path)
  assert "No score card could be read." in page and "card.json is not a score card" in page
  assert tables(page) == {}


def test_texts_that_hold_html_stay_texts(tmp_path):
  bad = "</td><script>x</script>\u202e\ud800"
  run = card()["run"] | {"name": bad, "weights": bad}
  write(
    tmp_path,
    card(title=bad, run=run, scores={bad: score(1, 1, 1)}, protocol_title=bad, notes=[bad],
         breakdowns={bad: {bad: {bad: score(1, 1, 1)}}}, judge=bad,
         missing=[{"id": bad, "reason": bad}], software={bad: bad}),
  )  # fmt: skip
  page = page_of(tmp_path)
  assert "<script" not in page and "&lt;script&gt;" in page and "\u202e" not in page


def test_several_samples_and_both_means_are_told(tmp_path):
  curves = {"4": {"pass": score(0.8, 0.7, 0.9), "majority": score(0.5, 0.4, 0.6), "chance": 0.68}}
  means = {"micro": score(0.5, 0.4, 0.6), "macro over task": score(0.45, 0.3, 0.6)}
  write(tmp_path, card(curves=curves, aggregates=means, further={"when R@0.3": 0.123456}))
  page = page_of(tmp_path)
  rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", page)
  assert rows[:6] == [
    ("micro", "50.0 [40.0, 60.0]", "24"), ("macro over task", "45.0 [30.0, 60.0]", "24"),
    ("when R@0.3", "0.1235", ""), ("pass@4", "80.0 [70.0, 90.0]", "24"),
    ("majority@4", "50.0 [40.0, 60.0]", "24"), ("pass@4 by chance", "68.0", ""),
  ]  # fmt: skip


def test_a_folder_without_cards_has_no_such_section(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 1, "time": 1.0, "loss": 3}\n')
  page = page_of(tmp_path)
  assert "s-cards" not in page and "card.json" not in page
