"""The demo's scenes obey their rules, and the files show what the scenes say."""

import itertools

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from rmsd_jax.core.errors import UserError
from rmsd_jax.demo import world

# Frames that a processor takes from 24 at 2 frames a second: Hugging Face's rule.
SAMPLED_F2 = np.round(np.linspace(0, 23, 12)).astype(int).reshape(6, 2)

seeds = st.integers(0, 2**32 - 1)
splits = st.sampled_from(world.SPLITS)


def scene_of(seed, split="train", still=False, **options):
  make = world.make_still if still else world.make_scene
  return make(np.random.default_rng(seed), split, **options)


def decode(path):
  with av.open(str(path)) as container:
    stream = container.streams.video[0]
    return stream, np.stack([f.to_ndarray(format="rgb24") for f in container.decode(stream)])


def cell_of(frame_HWC, cell):
  row, column = (world.CELL * part for part in divmod(cell, world.GRID))
  return frame_HWC[row : row + world.CELL, column : column + world.CELL]


def test_the_digit_pictures_are_split_without_overlap():
  _, _, rows = world.glyphs()
  assert len(rows["train"]) == 1300 and len(rows["test"]) == 497
  assert sorted([*rows["train"], *rows["test"]]) == list(range(1797))


@settings(max_examples=200, deadline=None)
@given(seeds, splits)
def test_each_name_of_a_card_names_one_card(seed, split):
  scene = scene_of(seed, split)
  for field in ("digit", "colour", "start"):
    values = [getattr(card, field) for card in scene.cards]
    assert len(set(values)) == len(values)
  assert [card.start for card in scene.cards] == sorted(card.start for card in scene.cards)
  places = [{card.cell, card.to_cell} for card in scene.cards]
  assert all(not one & two for one, two in itertools.combinations(places, 2))


@settings(max_examples=200, deadline=None)
@given(seeds, splits)
def test_cards_stay_within_the_clip_and_move_inside_their_time(seed, split):
  _, target, rows = world.glyphs()
  for card in scene_of(seed, split).cards:
    assert 0 <= card.start and card.start + 2 <= card.end <= world.SECONDS
    assert card.glyph in rows[split] and target[card.glyph] == card.digit
    if card.moves:
      assert card.start < card.move_at < card.end
      assert card.direction in world.DIRECTIONS
    else:
      assert card.direction == "none" and card.move_at == card.end


@settings(max_examples=100, deadline=None)
@given(seeds, splits)
def test_a_picture_has_resting_cards_in_reading_order(seed, split):
  scene = scene_of(seed, split, still=True)
  cells = [card.cell for card in scene.cards]
  assert scene.still and cells == sorted(set(cells))
  assert not any(card.moves for card in scene.cards)
  assert scene.visible(0) == scene.cards


def test_scenes_and_frames_depend_on_the_seed_alone():
  one, two = scene_of(7), scene_of(7)
  assert one == two and scene_of(8) != one
  assert np.array_equal(world.render(one), world.render(two))


def test_a_resting_card_fills_its_cell_with_its_glyph():
  scene = scene_of(0, cards=1, moving=0.0)
  card = scene.cards[0]
  before = world.render(scene)[card.start * world.FPS].astype(int)
  tile = cell_of(before, card.cell)
  ink = (load_digits().images[card.glyph] / 16).repeat(2, 0).repeat(2, 1)[..., None]
  wanted = np.array(world.COLOURS[card.colour]) * (1 - ink) + 255 * ink
  assert np.abs(tile - wanted).max() <= world.NOISE + 1
  outside = np.ones(before.shape[:2], bool)
  cell_of(outside, card.cell)[:] = False
  assert np.abs(before[outside] - scene.grey).max() <= world.NOISE


@pytest.mark.parametrize(
  "cell, box",
  [(0, (0, 0, 333, 333)), (5, (667, 333, 1000, 667)), (7, (333, 667, 667, 1000))],
)
def test_boxes_of_cells(cell, box):
  assert world.cell_box(cell) == box


def test_a_written_clip_decodes_to_its_frames(tmp_path):
  frames = world.render(scene_of(3))
  world.write_clip(tmp_path / "a.mp4", frames)
  world.write_clip(tmp_path / "b.mp4", frames)
  assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
  stream, decoded = decode(tmp_path / "a.mp4")
  assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p"
  assert stream.average_rate == world.FPS
  assert float(stream.duration * stream.time_base) == pytest.approx(world.SECONDS)
  assert decoded.shape == frames.shape
  assert np.abs(decoded.astype(int) - frames).mean() < 4


def test_labels_tell_what_the_decoded_frame_pairs_show(tmp_path):
  """Each cell of a decoded pair looks like its label: colour of the tile, or the grey ground."""
  palette = np.array([*world.COLOURS.values()])
  for seed in range(6):
    scene = scene_of(seed)
    world.write_media(tmp_path / "clip.mp4", scene)
    _, frames = decode(tmp_path / "clip.mp4")
    labels = world.cell_labels(scene)
    assert labels.digit_FG.shape == labels.colour_FG.shape == (6, 9)
    for pair, cell in itertools.product(range(6), range(9)):
      tile = cell_of(frames[SAMPLED_F2[pair, 0]], cell).reshape(-1, 3).astype(float)
      colour = labels.colour_FG[pair, cell]
      empty = labels.digit_FG[pair, cell] == world.NO_DIGIT
      assert empty == (colour == world.NO_COLOUR)
      if empty:
        assert np.abs(tile.mean(0) - scene.grey).max() < 6
      else:
        darkest = tile[np.argsort(tile.sum(1))[:40]].mean(0)
        assert np.abs(palette - darkest).sum(1).argmin() == colour


def test_held_out_digits_are_readable_after_the_codec(tmp_path):
  """A nearest-neighbour classifier of the training pictures reads the decoded held-out cards."""
  digits, (_, _, rows) = load_digits(), world.glyphs()
  train = rows["train"]
  classifier = KNeighborsClassifier(3).fit(digits.data[train] / 16, digits.target[train])
  read, truth = [], []
  for seed in range(60):
    scene = scene_of(seed, "test", moving=0.0)
    world.write_media(tmp_path / "clip.mp4", scene)
    _, frames = decode(tmp_path / "clip.mp4")
    for card in scene.cards:
      colour = np.array(world.COLOURS[card.colour], float)
      tile = cell_of(frames[card.start * world.FPS], card.cell).astype(float)
      ink = (tile - colour) @ (255 - colour) / np.sum((255 - colour) ** 2)
      read.append(ink.reshape(8, 2, 8, 2).mean((1, 3)).clip(0, 1).ravel())
      truth.append(card.digit)
  assert classifier.score(np.array(read), truth) > 0.95


def test_a_moving_card_is_half_way_in_the_frame_before_it_arrives():
  scene = next(s for s in map(scene_of, range(100)) if any(c.moves for c in s.cards))
  card = next(card for card in scene.cards if card.moves)
  alone = world.Scene((card,), scene.seconds, scene.grey, scene.noise_seed)
  frames, at = world.render(alone).astype(int), card.move_at * world.FPS
  filled = np.abs(frames - scene.grey).max(-1) > world.NOISE + 1
  centres = [np.argwhere(filled[frame]).mean(0) for frame in (at - 2, at - 1, at)]
  step = np.array(world.DIRECTIONS[card.direction]) * world.CELL / 2
  assert np.allclose(np.diff(centres, axis=0), [step, step], atol=1.0)


def test_child_processes_write_what_one_process_writes(tmp_path):
  scenes = [scene_of(seed, still=seed % 3 == 0) for seed in range(8)]
  for name in ("one", "many"):
    (tmp_path / name).mkdir()
  told = []
  for folder, workers in (("one", 1), ("many", 2)):
    jobs = [
      (tmp_path / folder / world.media_name(scene, str(i)), scene) for i, scene in enumerate(scenes)
    ]
    world.write_all(jobs, workers=workers, chunk=3, progress=told.append)
  assert told == [3, 3, 2] * 2
  files = sorted((tmp_path / "one").iterdir())
  assert len(files) == 8
  for file in files:
    assert file.read_bytes() == (tmp_path / "many" / file.name).read_bytes()


def test_a_picture_is_stored_without_loss(tmp_path):
  scene = scene_of(5, still=True)
  world.write_media(tmp_path / "a.png", scene)
  with Image.open(tmp_path / "a.png") as picture:
    assert np.array_equal(np.asarray(picture), world.render(scene)[0])
  assert world.cell_labels(scene).digit_FG.shape == (1, 9)


def test_an_unknown_split_is_refused():
  with pytest.raises(UserError, match="'dev' is not one of train, test"):
    scene_of(0, "dev")
