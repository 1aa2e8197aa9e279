"""chat.py against transformers' own tokenizer, template and timestamps."""

import json
import pickle

import hypothesis
import numpy as np
import pytest
import tiny_tokenizer
import transformers
from hypothesis import strategies as st
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from rmsd_jax.core.errors import UserError
from rmsd_jax.data import chat
from rmsd_jax.tasks import response

CLIP = chat.MediaTokens("video", (4, 4), (0.25, 1.75))
IMAGE = chat.MediaTokens("image", (6,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tiny_tokenizer.write(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def theirs(folder):
  return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def tokenizer(folder):
  return chat.ChatTokenizer(folder)


def user(*items):
  return [{"role": "user", "content": list(items)}]


def text(words):
  return {"type": "text", "text": words}


VIDEO_ITEM, IMAGE_ITEM = {"type": "video", "video": "a.mp4"}, {"type": "image", "image": "a.png"}


def test_text_is_the_templates(tokenizer, theirs):
  messages = [
    {"role": "system", "content": "You are a system."},
    {"role": "user", "content": "What is the colour?"},
    {"role": "assistant", "content": "7"},
    *user(text("and "), text("then?")),
  ]
  ids = tokenizer.encode_messages(messages)
  assert ids == theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
  assert theirs.decode(ids).endswith(
    "<|im_end|>\n<|im_start|>user\nand then?<|im_end|>\n<|im_start|>assistant\n"
  )


@pytest.mark.parametrize(
  ("wrapper", "clip"),
  [
    (False, "<0.2 seconds><|vision_start|>{v}<|vision_end|><1.8 seconds><|vision_start|>{v}"),
    (True, "<|vision_start|><0.2 seconds><|vision_start|>{v}<|vision_end|>"
     "<1.8 seconds><|vision_start|>{v}<|vision_end|>"),
  ],
)  # fmt: skip
def test_media_are_spelled_out_in_order(tokenizer, theirs, wrapper, clip):
  messages = user(text("a"), IMAGE_ITEM, text("b"), VIDEO_ITEM, text("c"))
  ids = tokenizer.encode_messages(messages, [IMAGE, CLIP], wrapper)
  expected = (
    "<|im_start|>user\na<|vision_start|>" + "<|image_pad|>" * 6 + "<|vision_end|>b"
    + clip.format(v="<|video_pad|>" * 4) + "<|vision_end|>c<|im_end|>\n<|im_start|>assistant\n"
  )  # fmt: skip
  assert theirs.decode(ids) == expected
  assert ids == theirs.encode(expected)
  assert (ids.count(tokenizer.image_pad), ids.count(tokenizer.video_pad)) == (6, 8)


@hypothesis.settings(deadline=None)
@hypothesis.given(
  indices=st.lists(st.integers(0, 10**5), min_size=1, max_size=9).map(sorted),
  fps=st.sampled_from((1.0, 10.0, 23.976, 24.0, 30000 / 1001)),
  temporal=st.integers(1, 3),
)
def test_timestamps_are_transformers(indices, fps, temporal):
  theirs = Qwen3VLProcessor._calculate_timestamps(None, list(indices), fps, temporal)
  assert list(chat.pair_seconds(np.array(indices) / fps, temporal)) == theirs


def test_media_must_match_the_template(tokenizer):
  for messages, media in (
    (user(VIDEO_ITEM), []),
    (user(VIDEO_ITEM), [IMAGE]),
    (user(IMAGE_ITEM, VIDEO_ITEM), [CLIP, IMAGE]),
    (user(text("only text")), [CLIP]),
  ):
    with pytest.raises(UserError, match="media placeholders"):
      tokenizer.encode_messages(messages, media)


@pytest.mark.parametrize(
  "arguments",
  [("audio", (1,), ()), ("image", (1, 2), ()), ("image", (1,), (0.5,)), ("video", (4, 4), (0.5,))],
)
def test_media_tokens_are_consistent(arguments):
  with pytest.raises(ValueError, match="kind is|an image has|a clip has"):
    chat.MediaTokens(*arguments)


def test_a_response_ends_its_turn_once(tokenizer, theirs):
  reply = "<think>The card shows 7.</think><answer>B. blue</answer>"
  ids = tokenizer.encode_response(reply)
  assert ids == theirs.encode(reply + "<|im_end|>")
  assert ids.count(tokenizer.im_end) == 1
  assert ids[0] == theirs.convert_tokens_to_ids("<think>")
  assert tokenizer.encode_response("") == [tokenizer.im_end]


@hypothesis.settings(deadline=None)
@hypothesis.given(st.text(max_size=40))
def test_decode_is_the_inverse(tokenizer, words):
  hypothesis.assume("<|" not in words)
  reply = "<think>" + words + "</think><answer>é 7</answer>"
  normal = tokenizer._tokenizer.backend_tokenizer.normalizer.normalize_str(reply)
  ids = tokenizer.encode_response(reply)
  assert tokenizer.decode(ids) == normal
  assert tokenizer.decode(np.array([*ids, tokenizer.pad, tokenizer.pad])) == normal


def test_a_template_that_opens_the_thoughts_has_them_opened_once(tmp_path, tokenizer):
  """As those of Thinking models do: the tag is the prompt's, and the text of a reply has it."""
  begin = "<|im_start|>assistant\n"
  template = tiny_tokenizer.TEMPLATE.replace(f"{begin}'", f"{begin}<think>\n'")
  assert template.count("<think>") == 1
  thinking = chat.ChatTokenizer(tiny_tokenizer.write(tmp_path, template))
  assert (tokenizer.opening, thinking.opening) == ("", "<think>\n")
  reply = "<think>it is 7</think><answer>7</answer>"
  prompt = thinking.encode_messages(user(text("?")))
  whole = thinking.decode([*prompt, *thinking.encode_response(reply)]).removeprefix("<think>\n")
  assert whole.endswith("assistant\n<think>\nit is 7</think><answer>7</answer>")
  assert whole.count("<think>") == 1
  told = thinking.decode(thinking.encode_response(reply))
  assert (
    told
    == "<think>\nit is 7</think><answer>7</answer>"
    == thinking.decode(thinking.encode_response(told))
  )
  assert response.parse(told) == response.parse(reply)
  assert thinking.decode(thinking.encode_response("no tags")) == "<think>\nno tags"


@pytest.mark.parametrize("token", tiny_tokenizer.SPECIAL)
def test_control_tokens_in_texts_are_refused(tokenizer, token):
  with pytest.raises(UserError, match="a response holds the control token"):
    tokenizer.encode_response("<answer>" + token + "</answer>")
  for content in ("a" + token, [text("a"), text(token)]):
    with pytest.raises(UserError, match="a user message holds the control token"):
      tokenizer.encode_messages([{"role": "user", "content": content}])


def test_ids_are_those_of_the_tokens(tokenizer, theirs):
  named = [
    tokenizer.pad,
    tokenizer.im_end,
    tokenizer.vision_start,
    tokenizer.vision_end,
    tokenizer.image_pad,
    tokenizer.video_pad,
  ]
  assert theirs.convert_ids_to_tokens(named) == [
    token for token in tiny_tokenizer.SPECIAL if token != "<|im_start|>"
  ]
  assert tokenizer.pad != tokenizer.im_end
  assert len(tokenizer) == len(theirs)


def test_the_fingerprint_follows_the_files(tokenizer, folder, tmp_path):
  assert chat.ChatTokenizer(folder).fingerprint == tokenizer.fingerprint
  assert pickle.loads(pickle.dumps(tokenizer)).fingerprint == tokenizer.fingerprint
  other = tiny_tokenizer.write(tmp_path, tiny_tokenizer.TEMPLATE + " ")
  assert chat.ChatTokenizer(other).fingerprint != tokenizer.fingerprint


def test_the_template_may_lie_in_chat_template_json(tokenizer, tmp_path):
  tiny_tokenizer.write(tmp_path)
  (tmp_path / "chat_template.jinja").unlink()
  with pytest.raises(UserError, match="no chat template"):
    chat.ChatTokenizer(tmp_path)
  (tmp_path / "chat_template.json").write_text(
    json.dumps({"chat_template": tiny_tokenizer.TEMPLATE}), encoding="utf-8"
  )
  assert chat.ChatTokenizer(tmp_path).fingerprint == tokenizer.fingerprint


def test_of_several_templates_the_processors_is_used_and_told(folder, tmp_path):
  """As transformers: its processor reads chat_template.json, its tokenizer the other."""
  tiny_tokenizer.write(tmp_path)
  other = "{{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}" + tiny_tokenizer.TEMPLATE
  write = lambda name, text: (tmp_path / name).write_text(json.dumps({"chat_template": text}))
  write("chat_template.json", tiny_tokenizer.TEMPLATE + "\n")

  def said():
    tokenizer = chat.ChatTokenizer(tmp_path)
    return tokenizer.decode(tokenizer.encode_messages(user(text("why"))))

  plain = said()  # the same but for white space at its end
  write("chat_template.json", other)
  with pytest.warns(UserWarning, match="different chat templates in .* that of chat_template.json"):
    assert said() == "<|im_start|>system\nBe brief.<|im_end|>\n" + plain
  write("processor_config.json", tiny_tokenizer.TEMPLATE)
  with pytest.warns(UserWarning, match="that of processor_config.json is used"):
    assert said() == plain


def test_of_templates_by_name_the_default_is_used(folder, tmp_path):
  tiny_tokenizer.write(tmp_path)
  (tmp_path / "chat_template.jinja").unlink()
  path = tmp_path / "tokenizer_config.json"
  named = [
    {"name": "tool", "template": "x"},
    {"name": "default", "template": tiny_tokenizer.TEMPLATE},
  ]
  path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
  assert chat.ChatTokenizer(tmp_path).fingerprint == chat.ChatTokenizer(folder).fingerprint


def test_a_template_that_thinks_for_the_reply_is_refused(tmp_path):
  closed = (
    tiny_tokenizer.TEMPLATE + "{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}"
  )
  tiny_tokenizer.write(tmp_path, closed)
  with pytest.raises(UserError, match="begins a reply with '<think>.*: every target and rollout"):
    chat.ChatTokenizer(tmp_path)


def test_a_folder_without_qwens_tokens_is_refused(tmp_path):
  with pytest.raises(UserError, match="no tokenizer_config.json"):
    chat.ChatTokenizer(tmp_path)
  plain = transformers.Qwen2Tokenizer(vocab={"a": 0, "<|endoftext|>": 1}, merges=[])
  plain.chat_template = "{{ messages }}"
  plain.save_pretrained(tmp_path)
  with pytest.raises(UserError, match=r"lacks <\|im_start\|>, <\|im_end\|>"):
    chat.ChatTokenizer(tmp_path)


BROKEN_TEMPLATES = {
  "{% for m in messages %}{{ m.role }}{% endfor %}": "no places for images and videos",
  "{% for m in messages %}": "is broken .TemplateSyntaxError",
  "{{ raise_exception('no') }}": "is broken .TemplateError: no",
  "{{ messages[7].content.x }}": "is broken",
  "{{ 1 / 0 }}": "is broken .ZeroDivisionError",
  "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}": "more than 0.3 s",
  tiny_tokenizer.TEMPLATE.replace("{{ item.text }}", ""): "leaves out the text",
  tiny_tokenizer.TEMPLATE.replace("assistant", "bot"): "does not begin a reply",
}


@pytest.mark.parametrize("template", BROKEN_TEMPLATES)
def test_a_template_that_cannot_serve_is_one_line(tmp_path, monkeypatch, template):
  monkeypatch.setattr(chat, "_TEMPLATE_SECONDS", 0.3)
  tiny_tokenizer.write(tmp_path, template)
  with pytest.raises(UserError, match=BROKEN_TEMPLATES[template]) as error:
    chat.ChatTokenizer(tmp_path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("changes", "words"),
  [
    ({"image_token_id": 7}, "says image_token_id 7, the tokenizer there has <.image_pad.>"),
    ({"vision_end_token_id": 1}, "says vision_end_token_id 1"),
    ({"text_config": {"vocab_size": 300}}, r"the model has 300 rows .vocab_size."),
    ({"text_config": {"vocab_size": 9_999}}, None),
  ],
)
def test_the_tokenizer_is_held_against_the_models_config(tmp_path, changes, words):
  tiny_tokenizer.write(tmp_path)
  (tmp_path / "config.json").write_text(json.dumps(changes))
  if words is None:
    assert chat.ChatTokenizer(tmp_path).opening == ""
  else:
    with pytest.raises(UserError, match=words):
      chat.ChatTokenizer(tmp_path)


@pytest.mark.parametrize(
  ("where", "more"),
  [
    ("config.json", [5]),
    ("generation_config.json", ["x"]),
    ("text_config", [[1]]),
    ("config.json", [True]),
    ("generation_config.json", [330.0]),
    ("config.json", []),
    ("text_config", []),
  ],
)
def test_a_response_ends_at_a_control_token_alone(tokenizer, tmp_path, where, more):
  tiny_tokenizer.write(tmp_path)
  raw = {"eos_token_id": [tokenizer.im_end, tokenizer.pad, *more]}
  raw = {"text_config": raw} if where == "text_config" else raw
  (tmp_path / ("config.json" if where == "text_config" else where)).write_text(json.dumps(raw))
  if more:
    with pytest.raises(UserError, match="is no control token of the tokenizer; name <.im_end.>"):
      chat.ChatTokenizer(tmp_path)
  else:
    assert chat.ChatTokenizer(tmp_path).im_end == tokenizer.im_end


def empty_vocabulary(value):
  value["model"] |= {"vocab": {}, "merges": []}
  return json.dumps(value)


@pytest.mark.parametrize(
  ("damage", "words"),
  [
    (empty_vocabulary, "does not give back 'Which words are here.'; its files are not whole"),
    (lambda value: json.dumps(value)[:900], "tokenizer.json is no whole JSON file"),
    (lambda value: "[]", "tokenizer.json holds no JSON object"),
  ],
)
def test_an_incomplete_copy_is_refused(tmp_path, damage, words):
  path = tiny_tokenizer.write(tmp_path) / "tokenizer.json"
  path.write_text(damage(json.loads(path.read_text())))
  with pytest.raises(UserError, match=words):
    chat.ChatTokenizer(tmp_path)
