"""The tiny base's tokenizer loads as Qwen's does and splits what the demo's tasks copy."""

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from rmsd_jax.data.chat import ChatTokenizer, MediaTokens
from rmsd_jax.demo import tokenizer as tokenizer_lib
from rmsd_jax.demo import world
from rmsd_jax.demo.plain_texts import plain_texts
from rmsd_jax.demo.questions import questions
from rmsd_jax.demo.simulated_teacher import Teacher, respond
from rmsd_jax.tasks import Rules


@pytest.fixture(scope="module")
def trained():
  return tokenizer_lib.train(tokenizer_lib.corpus(scenes=120))


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
  out = tmp_path_factory.mktemp("tokenizer")
  tokenizer_lib.write_folder(trained, out)
  return out


@pytest.fixture(scope="module")
def loaded(folder):
  return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)


def test_transformers_loads_qwens_tokenizer_with_the_same_ids(trained, loaded):
  assert "Qwen2" in type(loaded).__name__
  assert loaded.get_vocab() == trained.get_vocab() and len(loaded) <= 800
  assert loaded.eos_token == "<|im_end|>" and loaded.pad_token == "<|endoftext|>"
  assert loaded.bos_token is None
  for text in tokenizer_lib.corpus(scenes=3, seed=9):
    assert loaded(text, add_special_tokens=False).input_ids == trained.encode(text).ids


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(trained, text):
  normal = trained.normalizer.normalize_str(text)
  assert trained.decode(trained.encode(text).ids, skip_special_tokens=False) == normal


def test_every_byte_has_an_id(trained):
  single = {token for token in trained.get_vocab() if len(token) == 1}
  assert len(single) == 256


def test_control_tokens_are_single_ids_after_the_bpe(trained):
  every = (*tokenizer_lib.CONTROL_TOKENS, *tokenizer_lib.THINK_TOKENS)
  for token in every:
    assert trained.encode(f"a{token}b").tokens.count(token) == 1
  first = trained.get_vocab_size() - len(every)
  assert [trained.token_to_id(token) for token in every] == [*range(first, first + len(every))]


def test_reasoning_tags_survive_decoding_and_control_tokens_do_not(trained):
  ids = trained.encode("<think>so</think><answer>B</answer><|im_end|>").ids
  assert trained.decode(ids, skip_special_tokens=True) == "<think>so</think><answer>B</answer>"


@pytest.mark.parametrize("digit", "0123456789")
def test_digits_are_tokens_of_their_own(trained, digit):
  for text in (f"{digit}{digit}", f"the {digit}", f">{digit}<", f"[{digit}, {digit}]"):
    assert trained.encode(text).tokens.count(digit) == text.count(digit)


@pytest.mark.parametrize("letter", "ABCD")
def test_option_letters_are_the_same_token_everywhere(trained, letter):
  places = (f"{letter}. red", f"\n{letter}. red", f"is {letter}.", f"<answer>{letter}</answer>")
  for text in places:
    assert letter in trained.encode(text).tokens, text


def test_the_chat_template_is_qwens_plain_case(loaded):
  messages = [
    {"role": "user", "content": [{"type": "video", "video": "x"}, {"type": "text", "text": "Hi"}]},
    {"role": "assistant", "content": "Ho"},
    {"role": "user", "content": [{"type": "image", "image": "y"}]},
  ]
  text = loaded.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
  assert text == (
    "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>Hi<|im_end|>\n"
    "<|im_start|>assistant\nHo<|im_end|>\n"
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|><|im_end|>\n"
    "<|im_start|>assistant\n"
  )


def test_the_projects_chat_reads_the_folder(folder):
  chat = ChatTokenizer(folder)
  media = [MediaTokens("video", (9, 9), (0.25, 1.25))]
  content = [{"type": "video", "video": "x"}, {"type": "text", "text": "Where?"}]
  ids = chat.encode_messages([{"role": "user", "content": content}], media)
  assert ids.count(chat.video_pad) == 18
  pads = "<|vision_start|>" + 9 * "<|video_pad|>" + "<|vision_end|>"
  assert f"<0.2 seconds>{pads}<1.2 seconds>{pads}Where?" in chat.decode(ids)
  assert chat.encode_response("Hi")[-1] == chat.im_end


def test_texts_of_the_demo_are_short(trained):
  """Held-out scenes: a response takes at most 56 tokens, its end included; a prompt's text 60."""
  for number in range(150):
    rng = np.random.default_rng(number)
    scene = (world.make_still if number % 6 == 0 else world.make_scene)(rng, "test")
    for question in questions(scene, rng):
      prompt = Rules().prompt_text(question.task, question.text, question.options)
      assert len(trained.encode(prompt).ids) <= 60
      for response in respond(question, Teacher(), rng):
        assert len(trained.encode(response["text"]).ids) + 1 <= 56
    for ask, reply in plain_texts(scene, rng):
      assert len(trained.encode(ask).ids) + len(trained.encode(reply).ids) <= 60


def test_training_is_deterministic(trained):
  again = tokenizer_lib.train(tokenizer_lib.corpus(scenes=120))
  assert again.to_str() == trained.to_str()
