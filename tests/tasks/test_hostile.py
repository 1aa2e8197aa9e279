"""Responses made to cheat the rules: none crashes, earns more than it says, or takes long.

Each is built around the right answer of the task, so that a rule that reads it where it should not
would pay for it.
"""

import json
import time

import pytest

from rmsd_jax.tasks import Rules, registry, symbolic

SECONDS = 0.05  # most for one response
TASKS = sorted(registry.TASKS)
TEXT_TASKS = ("ocr", "math", "open_ended")  # any text is an answer

# Around the right answer {a}: the outer format is missing, doubled, nested, cut off or disguised.
FRAMES = {
  "bare": "{a}",
  "no think": "<answer>{a}</answer>",
  "empty": "",
  "white space": " \n\t ",
  "only think": "<think>{a}</think>",
  "inside think": "<think><answer>{a}</answer></think>",
  "inside think and after": "<think><answer>{a}</answer></think><answer>{a}</answer>",
  "answer first": "<answer>{a}</answer><think>so</think>",
  "two answers": "<think>x</think><answer>{a}</answer><answer>{a}</answer>",
  "two blocks": "<think>x</think><answer>{a}</answer>" * 2,
  "nested answers": "<think>x</think><answer><answer>{a}</answer></answer>",
  "nested think": "<think><think>x</think></think><answer>{a}</answer>",
  "unclosed answer": "<think>x</think><answer>{a}",
  "unclosed think": "<think>x<answer>{a}</answer>",
  "unopened": "x</think><answer>{a}</answer>",
  "closed twice": "<think>x</think><answer>{a}</answer></answer>",
  "crossed": "<think>x<answer></think>{a}</answer>",
  "before": "Sure: <think>x</think><answer>{a}</answer>",
  "between": "<think>x</think>so<answer>{a}</answer>",
  "after": "<think>x</think><answer>{a}</answer> I am sure.",
  "upper case": "<THINK>x</THINK><ANSWER>{a}</ANSWER>",
  "spaced tags": "<think >x</think ><answer >{a}</answer >",
  "attributes": '<think>x</think><answer id="1">{a}</answer>',
  "escaped": "&lt;think&gt;x&lt;/think&gt;&lt;answer&gt;{a}&lt;/answer&gt;",
  "wide brackets": "＜think＞x＜/think＞＜answer＞{a}＜/answer＞",
  "zero width": "<th\u200bink>x</think><answer>{a}</answer>",
  "boxed": "<think>x</think>\\boxed{{{a}}}",
  "fenced": "```\n<think>x</think><answer>{a}</answer>\n```",
  "the prompt again": "Reply as <think>your reasoning</think><answer>{a}</answer>. "
  "<think>x</think><answer>{a}</answer>",
  "control token": "<think>x</think><answer>{a}</answer><|im_end|>",
  "a turn of its own": "<think>x</think><|im_start|>user\n{a}<answer>{a}</answer>",
  "many tags": "<think>" * 20_000 + "{a}",
  "many answers": "<think>x</think>" + "<answer>{a}</answer>" * 5_000,
  "long after": "<think>x</think><answer>{a}</answer>" + "!" * 100_000,
}
# Inside the right outer format: no answer of any structured task.
ANSWERS = {
  "empty": "",
  "white space": " \n ",
  "all letters": "A B C D",
  "letters joined": "ABCD",
  "two letters": "A or B",
  "letters by comma": "A, B",
  "an option's wrong text": "A. two dogs",
  "a letter nobody offers": "Z",
  "a sentence": "The answer is B",
  "greek letter": "\u0392",  # looks like B
  "wide letter": "\uff22",
  "nan": "NaN",
  "infinity": "Infinity",
  "minus infinity": "-inf",
  "too large": "1e309",
  "hexadecimal": "0x10",
  "underscores": "1_000",
  "arabic digits": "\u0661\u0662",
  "superscript": "\u00b2",
  "roman numeral": "\u2167",
  "two numbers": "12.5 13",
  "range": "12-13",
  "fraction": "25/2",
  "unit": "12.5 m",
  "wrong commas": "1,2,3",
  "long number": "9" * 100_000,
  "long text": "word " * 20_000,
  "one long word": "x" * 100_000,
  "null": "null",
  "true": "true",
  "list": "[1, 2.5]",
  "number in json": '{"time": 1}',
  "empty object": "{}",
  "reversed interval": '{"time": [9, 1]}',
  "equal ends": '{"time": [1, 1]}',
  "negative start": '{"time": [-1, 2.5]}',
  "endless interval": '{"time": [0, Infinity]}',
  "nan interval": '{"time": [NaN, 2.5]}',
  "overflowing interval": '{"time": [0, 1e999]}',
  "three ends": '{"time": [1, 2.5, 3]}',
  "text ends": '{"time": ["1", "2.5"]}',
  "boolean ends": '{"time": [false, true]}',
  "a key twice": '{"time": [0, 1], "time": [1, 2.5]}',
  "extra key": '{"time": [1, 2.5], "sure": 1}',
  "other case": '{"Time": [1, 2.5]}',
  "single quotes": "{'time': [1, 2.5]}",
  "trailing comma": '{"time": [1, 2.5],}',
  "comment": '{"time": [1, 2.5]} // sure',
  "two objects": '{"time": [1, 2.5]}{"boxes": [0, 0, 500, 1000]}',
  "reversed box": '{"boxes": [500, 1000, 0, 0]}',
  "box out of range": '{"boxes": [0, 0, 500, 1001]}',
  "negative box": '{"boxes": [-1, 0, 500, 1000]}',
  "flat box": '{"boxes": [0, 0, 0, 1000]}',
  "five corners": '{"boxes": [0, 0, 500, 1000, 1]}',
  "list of boxes": '{"boxes": [[0, 0, 500, 1000]]}',
  "pixels": '{"boxes": [0, 0, 640, 48000]}',
  "boxes without seconds": '{"boxes": {}}',
  "second of text": '{"boxes": {"first": [0, 0, 9, 9]}}',
  "second given twice": '{"boxes": {"0": [0, 0, 9, 9], "0": [0, 0, 9, 9]}}',
  "second with zeros": '{"boxes": {"00": [0, 0, 9, 9]}}',
  "too many boxes": json.dumps({"boxes": {str(i): [0, 0, 9, 9] for i in range(80)}}),
  "time without boxes": '{"time": [2, 4], "boxes": {}}',
  "deep lists": "[" * 50_000 + "]" * 50_000,
  "deep objects": '{"boxes":' * 20_000,
  "open brackets": "{[" * 200,
  "dollars": "$" * 3_999 + "x",
  "powers of powers": "((((9^9)^9)^9)^9)^9",
  "power tower": "9^{9^{9^{9}}}",
  "factorials": "((((9!)!)!)!)!",
  "nested fractions": "\\frac{1}{" * 2_000 + "1" + "}" * 2_000,
  "long product": "(x+1)" * 5_000,
  "code": "__import__('os').system('true')",
  "format string": "%s%n{0.__class__}",
  "null byte": "\x00",
  "lone surrogate": "\ud800",
  "right to left": "\u202e5.21",
  "combining": "1" + "\u0300" * 5_000,
}


MARKS = {"a mark of two": "\u0f73" * 60_000 + ")", "an accent": "a" + "\u0301" * 60_000}


def right(name: str) -> str:
  return registry.spelled(registry.get(name).example.truth)


def graded(name: str, reply: str):
  """(R_outer, R_task, R_content) and the least of a few timings: the machine may be busy."""
  (truth, _, options), seconds = registry.get(name).example, []
  for _ in range(3):
    symbolic._judged.cache_clear()
    began = time.perf_counter()
    terms = Rules().terms(name, reply, truth, options)
    seconds.append(time.perf_counter() - began)
    if seconds[-1] < SECONDS:
      break
  return terms, min(seconds)


def test_the_corpus_is_large_and_of_different_texts():
  texts = {frame.format(a=right(name)) for name in TASKS for frame in FRAMES.values()}
  texts |= {f"<think>x</think><answer>{answer}</answer>" for answer in ANSWERS.values()}
  assert len(texts) >= 300


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("frame", FRAMES)
def test_the_right_answer_outside_the_format_earns_nothing(name, frame):
  reply = FRAMES[frame].format(a=right(name))
  terms, seconds = graded(name, reply)
  assert terms == (0.0, 0.0, 0.0)
  truth, _, options = registry.get(name).example
  assert Rules().score(name, reply, truth, options).quality == 0
  assert seconds < SECONDS


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_no_answer_earns_the_outer_format_alone(name, answer):
  reply = f"<think>x</think><answer>{ANSWERS[answer]}</answer>"
  (outer, inner, content), seconds = graded(name, reply)
  assert (outer, content) == (1.0, 0.0)
  said_something = bool(ANSWERS[answer].strip("\x00 \n"))
  assert inner == (float(said_something) if name in TEXT_TASKS else 0.0)
  assert seconds < SECONDS


@pytest.mark.parametrize("name", TASKS)
def test_the_right_answer_in_the_format_earns_all(name):
  terms, _ = graded(name, f"<think>x</think><answer>{right(name)}</answer>")
  assert terms == (1.0, 1.0, float(registry.get(name).closed))


@pytest.mark.parametrize("reading", registry.READINGS)
@pytest.mark.parametrize("marks", MARKS)
def test_marks_upon_marks_cost_little(marks, reading):
  """Unicode's normal forms sort them in quadratic time, and a long truth allows many."""
  rules = Rules(reading=reading)
  for task, truth in (("ocr", "STOP"), ("ocr", "STOP " * 4_000), ("math", "5"), ("numerical", 5)):
    seconds = []
    for _ in range(3):
      began = time.perf_counter()
      score = rules.score(task, f"<think>x</think><answer>{MARKS[marks]}</answer>", truth)
      seconds.append(time.perf_counter() - began)
    assert score.quality == 0 and min(seconds) < 2 * SECONDS
