"""Positions of prompts and patches, and what a rotation must keep."""

import numpy as np
import pytest

from rmsd_jax.core import positions

RNG = np.random.default_rng(0)


# prompt_positions


def test_the_example_of_the_docstring():
  is_visual = np.array([0, 0, 1, 1, 1, 1, 0], bool)
  got, following = positions.prompt_positions(is_visual, np.array([[4, 4]]))
  want = [[0, 1, 2, 2, 2, 2, 4], [0, 1, 2, 2, 3, 3, 4], [0, 1, 2, 3, 2, 3, 4]]
  np.testing.assert_array_equal(got, want)
  assert following == 5 and got.dtype == np.int32


def test_text_counts_on_all_three_axes():
  got, following = positions.prompt_positions(np.zeros(5, bool), np.zeros((0, 2)))
  np.testing.assert_array_equal(got, np.tile(np.arange(5), (3, 1)))
  assert following == 5


def test_vision_takes_as_many_positions_as_its_longer_side():
  """A wide and a tall frame pair, next to each other and at the very end of the prompt."""
  is_visual = np.array([0] + [1] * 3 + [1] * 6, bool)
  got, following = positions.prompt_positions(is_visual, np.array([[2, 6], [6, 4]]))
  np.testing.assert_array_equal(got[0], [0, 1, 1, 1, 4, 4, 4, 4, 4, 4])
  np.testing.assert_array_equal(got[1], [0, 1, 1, 1, 4, 4, 5, 5, 6, 6])
  np.testing.assert_array_equal(got[2], [0, 1, 2, 3, 4, 5, 4, 5, 4, 5])
  assert following == 7


@pytest.mark.parametrize("grid, held", [([[4, 4]], 4), ([[2, 2], [2, 2]], 2), ([], 0)])
def test_places_and_grids_must_agree(grid, held):
  message = f"3 visual places in the prompt, but the grids hold {held} tokens"
  with pytest.raises(ValueError, match=message):
    positions.prompt_positions(np.array([0, 1, 1, 1], bool), np.array(grid).reshape(-1, 2))


# mrope_angles and rotate


def test_frequencies_are_dealt_out_to_time_row_and_column_in_turn():
  """Qwen3-VL's interleaving: t h w t h w .. while rows and columns last, then time."""
  sections, head, theta = (4, 2, 2), 16, 100.0
  axes = []
  for axis in range(3):
    position = np.zeros((1, 3, 1), np.int32)
    position[0, axis] = 1
    angles = np.asarray(positions.mrope_angles(position, head, theta, sections))[0, 0]
    turned = angles > 0
    np.testing.assert_allclose(
      angles[turned], theta ** (-np.arange(0, 1, 1 / 8))[turned], rtol=1e-6
    )
    axes.append(turned)
  np.testing.assert_array_equal(np.argmax(axes, 0), [0, 1, 2, 0, 1, 2, 0, 0])
  assert (np.sum(axes, 0) == 1).all() and np.sum(axes, 1).tolist() == list(sections)


def test_the_released_sections_use_each_axis_as_often_as_they_say():
  position = np.array([1, 100, 10_000], np.int32).reshape(1, 3, 1)
  angles = np.asarray(positions.mrope_angles(position, 128, 5e6, (24, 20, 20)))[0, 0]
  scale = np.round(np.log10(angles / 5e6 ** (-np.arange(64) / 64)))
  assert [(scale == s).sum() for s in (0, 2, 4)] == [24, 20, 20]


def test_rotation_keeps_norms_and_turns_nothing_at_position_zero():
  x = RNG.standard_normal((2, 5, 8)).astype(np.float32)
  angles = RNG.uniform(-9, 9, (2, 5, 4)).astype(np.float32)
  turned = np.asarray(positions.rotate(x, angles))
  np.testing.assert_allclose((turned**2).sum(-1), (x**2).sum(-1), rtol=1e-5)
  np.testing.assert_array_equal(positions.rotate(x, np.zeros_like(angles)), x)
  assert np.abs(turned - x).max() > 0.1


def test_rotation_is_of_the_pairs_half_a_head_apart():
  x = RNG.standard_normal(8).astype(np.float32)
  angles = np.array([0.3, -1.0, 2.0, 0.7], np.float32)
  want = (x[:4] + 1j * x[4:]) * np.exp(1j * angles)
  got = np.asarray(positions.rotate(x, angles))
  np.testing.assert_allclose(got[:4] + 1j * got[4:], want, rtol=1e-5)


def test_scores_depend_on_the_distance_alone():
  q, k = RNG.standard_normal((2, 16)).astype(np.float32)

  def score(at_q, at_k):
    both = np.stack([at_q, at_k], 1)[None]
    angles = positions.mrope_angles(both, 16, 100.0, (4, 2, 2))[0]
    return float(positions.rotate(q, angles[0]) @ positions.rotate(k, angles[1]))

  here, there = np.array([7, 3, 5]), np.array([2, 9, 4])
  for shift in ([1, 1, 1], [40, 0, 0], [3, -2, 11]):
    np.testing.assert_allclose(score(here + shift, there + shift), score(here, there), atol=1e-4)
  for axis in np.eye(3, dtype=int):
    assert abs(score(here + axis, there) - score(here, there)) > 1e-3


# patches


def test_patches_stand_block_by_block():
  got = np.asarray(positions.patch_rows_columns(np.array([[4, 6], [2, 2]]), 24))
  blocks = [(r, c) for r in (0, 2) for c in (0, 2, 4)]
  want = [(r + i, c + j) for r, c in blocks for i in (0, 1) for j in (0, 1)]
  np.testing.assert_array_equal(got[0], want)
  np.testing.assert_array_equal(got[1, :4], [(0, 0), (0, 1), (1, 0), (1, 1)])


def test_every_patch_of_a_picture_has_its_own_place():
  for rows, columns in ((2, 12), (12, 2), (6, 4)):
    places = np.asarray(positions.patch_rows_columns(np.array([[rows, columns]]), 24))[0]
    assert {tuple(p) for p in places} == {(r, c) for r in range(rows) for c in range(columns)}


def test_merge_of_three():
  places = np.asarray(positions.patch_rows_columns(np.array([[3, 6]]), 18, merge=3))[0]
  np.testing.assert_array_equal(places[[0, 2, 3, 8, 9]], [(0, 0), (0, 2), (1, 0), (2, 2), (0, 3)])


def test_patch_angles_turn_by_row_then_by_column():
  angles = np.asarray(positions.patch_angles(np.array([[[3, 5]]]), head=8))[0, 0]
  np.testing.assert_allclose(angles, [3, 3 / 100, 5, 5 / 100], rtol=1e-6)


GRIDS = np.array([[2, 2], [4, 6], [10, 2], [0, 0]])
SIDE = 6


def taps():
  places = positions.patch_rows_columns(GRIDS, 24)
  return places, *map(np.asarray, positions.position_taps(places, GRIDS, SIDE))


def test_tap_weights_sum_to_one_and_are_inside_the_table():
  _, index, weight = taps()
  np.testing.assert_allclose(weight.sum(-1), 1, atol=1e-5)
  assert (index >= 0).all() and (index < SIDE**2).all()
  for f, (rows, columns) in enumerate(GRIDS):
    real = weight[f, : rows * columns]
    assert (real >= 0).all() and (real <= 1 + 1e-6).all()
  assert np.isfinite(weight).all()


def test_taps_interpolate_linearly_with_corners_on_corners():
  """A table that is linear in row and column is read exactly: place * (side - 1) / (size - 1)."""
  places, index, weight = taps()
  row, column = np.divmod(np.arange(SIDE**2), SIDE)
  for f, (rows, columns) in enumerate(GRIDS[:3]):
    n = rows * columns
    for table, axis, size in ((row, 0, rows), (column, 1, columns)):
      read = (table[index[f, :n]] * weight[f, :n]).sum(-1)
      want = np.asarray(places)[f, :n, axis] * (SIDE - 1) / (size - 1)
      np.testing.assert_allclose(read, want, atol=1e-5)


def test_a_picture_of_the_tables_size_reads_the_table_itself():
  grid = np.array([[SIDE, SIDE]])
  places = np.asarray(positions.patch_rows_columns(grid, SIDE**2))
  index, weight = map(np.asarray, positions.position_taps(places, grid, SIDE))
  chosen = np.take_along_axis(index[0], weight[0].argmax(-1)[:, None], 1)[:, 0]
  np.testing.assert_array_equal(chosen, places[0, :, 0] * SIDE + places[0, :, 1])
  np.testing.assert_allclose(weight[0].max(-1), 1, atol=1e-5)
