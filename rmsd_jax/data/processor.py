"""Messages and media -> prompts: the one path from a conversation to what the model reads.

Training, rollouts, scoring and evaluation all build their prompts here, so they cannot disagree
about frames, timestamps or token counts. Numpy only: this runs in pool builders and data workers.

Axes: P prompt tokens, F frame pairs (a still image is one), S patches of a frame pair, C values of
a patch, H rows, W columns.
"""

import dataclasses
import functools
import json
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from rmsd_jax.core.errors import UserError
from rmsd_jax.core.groups import Bucket, PromptGroups
from rmsd_jax.data import chat, images, media, prompts, subtitles
from rmsd_jax.data.messages import Medium, image_of, media_of
from rmsd_jax.data.prompts import Prompt


@dataclasses.dataclass(frozen=True)
class _Read:
  """One image or clip, ready for the model: patches_FSC, its grid, its times, its token layout."""

  patches_FSC: np.ndarray
  grid_2: tuple[int, int]
  times_F2: np.ndarray
  tokens: chat.MediaTokens


@dataclasses.dataclass(frozen=True)
class MediaPlan:
  """What one image or clip will be: frames read, their size in pixels after the resize, tokens."""

  frames: int
  height: int
  width: int
  layout: chat.MediaTokens

  @property
  def tokens(self) -> int:
    """Visual tokens, timestamps and markers not counted."""
    return sum(self.layout.counts_F)


class Processor:
  """Turns conversations into prompts, and samples back into text.

      processor = Processor(folder)
      groups = processor([messages, messages])        # a batch; one conversation is a batch of one
      texts = processor.decode(generate(model, params, groups))

  Picklable, so that a pool builder can send it to its worker processes.

  Attributes:
    tokenizer: the `chat.ChatTokenizer` (also encodes the responses).
    video, image: the `images.Budget` of clips and of stills; they share patch, merge, temporal.
    sampling: the `media.Sampling` of frames.
    outer_vision_wrapper: see `chat.ChatTokenizer.encode_messages`.
    layout: the `prompts.Layout` of the model.
  """

  def __init__(
    self,
    folder: str | pathlib.Path,
    *,
    sampling: media.Sampling | None = None,
    times: str | None = None,
    video_style: str = "hf_video",
    video_pixels: tuple[int, int] | None = None,
    image_pixels: tuple[int, int] | None = None,
    outer_vision_wrapper: bool = False,
  ):
    """A processor for a Hugging Face model folder.

    The patch, merge and temporal sizes come from `vision_config` of its config.json.

    Args:
      folder: holds config.json, the tokenizer's files and the chat template.
      sampling: which frames of a clip are read; None: the released model's rule, or that of
        qwen-vl-utils for its style.
      times: the clock of the sampling, "stamps" or "index" (exact parity with transformers), see
        `media.Sampling`; None: as `sampling` says.
      video_style: "hf_video" or "utils_video", see `images.Budget`.
      video_pixels, image_pixels: (least, most) pixels; None takes the default of the style.
      outer_vision_wrapper: see `chat.ChatTokenizer.encode_messages`.

    Raises:
      UserError: a file is missing or lacks a field; a budget is impossible.
    """
    patch, merge, temporal = read_geometry(folder)
    _check_preprocessors(pathlib.Path(folder), patch, merge, temporal)
    budget = functools.partial(images.budget, patch=patch, merge=merge, temporal=temporal)
    self.tokenizer = chat.ChatTokenizer(folder)
    self.video = budget(video_style, video_pixels)
    self.image = budget("hf_image", image_pixels)
    # The pixels and the frames of qwen-vl-utils go together.
    sampling = sampling or media.Sampling(even=video_style == "utils_video")
    self.sampling = dataclasses.replace(sampling, times=times or sampling.times)
    self.outer_vision_wrapper = outer_vision_wrapper
    self.layout = prompts.Layout(patch, merge, temporal, self.tokenizer.pad)

  def __call__(self, conversations: Sequence, bucket: Bucket | None = None) -> PromptGroups:
    """Conversations -> groups with no response slots, see `prompts.collate`.

    Args:
      conversations: a list of message lists as `prompt` takes them, or one such list.
      bucket: the padded sizes; None: the smallest that hold the batch.

    Raises:
      media.MediaError, UserError: as `prompt`; a prompt does not fit the bucket.
    """
    if isinstance(conversations, str | Mapping) or not conversations:
      raise UserError(f"a conversation is a list of messages, not {conversations!r:.80}")
    # Told apart by what is inside: messages, or lists of messages.
    single = isinstance(conversations[0], Mapping)
    several = [conversations] if single else conversations
    return prompts.collate([self.prompt(messages) for messages in several], self.layout, bucket)

  def prompt(self, messages: Sequence[Mapping]) -> Prompt:
    """Reads the media of one conversation and lays out its tokens.

    Args:
      messages: [{"role": "system" | "user" | "assistant", "content": str or list of items}], the
        last one by the user. Items: {"type": "text", "text": str},
        {"type": "image", "image": image} and {"type": "video", "video": path, "start": seconds,
        "end": seconds} with optional start and end, on the clock of the file from its first frame
        on; or {"type": "video", "video": list of images, "times": list of seconds} (or
        "sample_fps": frames a second), of which all are taken. "subtitles" of a video, a list of
        {"start": seconds, "end": seconds, "text": str}, stand among its frames, see
        `subtitles.between`. An image is a path, a file:// address, a data: address in base64, a
        PIL image, or uint8 [H, W, 3].

    Returns:
      The prompt, ending with the header of the assistant's turn.

    Raises:
      media.MediaError: a file is missing or cannot be decoded, or the window is empty.
      UserError: a message is malformed, a text holds a control token, a picture is too elongated.
    """
    read_media = [self._read(medium) for medium in media_of(messages)]
    # The pads stand for visual tokens one by one, in the order in which the messages name the
    # media.
    ids_P = np.asarray(
      self.tokenizer.encode_messages(
        messages, [medium.tokens for medium in read_media], self.outer_vision_wrapper
      ),
      np.int32,
    )
    is_visual_P = np.isin(ids_P, (self.tokenizer.image_pad, self.tokenizer.video_pad))
    # A clip's grid is repeated for each of its frame pairs, which the model sees one by one.
    grids = [medium.grid_2 for medium in read_media for _ in medium.patches_FSC]
    prompt = Prompt(
      ids_P=ids_P,
      is_visual_P=is_visual_P,
      grid_F2=np.asarray(grids, np.int32).reshape(-1, 2),
      patches=tuple(patches_SC for medium in read_media for patches_SC in medium.patches_FSC),
      # The empty array is for conversations without media.
      times_F2=np.concatenate([np.zeros((0, 2), np.float32)] + [m.times_F2 for m in read_media]),
    )
    prompts.check_prompt(prompt, self.video.merge)
    return prompt

  def plan(self, messages: Sequence[Mapping]) -> tuple[Bucket, list[MediaPlan]]:
    """What `prompt` will make of a conversation, from headers and first frames alone.

    Returns:
      The smallest bucket that holds the prompt (P exact, T = 0), and each medium's frames, size
      and tokens.

    Raises:
      media.MediaError, UserError: as `prompt`.
    """
    plans = [self._plan(medium) for medium in media_of(messages)]
    # Tokenised in full: timestamps and the question decide P as the frames do.
    tokens = [plan.layout for plan in plans]
    ids = self.tokenizer.encode_messages(messages, tokens, self.outer_vision_wrapper)
    # At least one frame pair of one visual token, though it be padding: shapes are never empty.
    counts_F = [count for plan in plans for count in plan.layout.counts_F]
    patches = self.layout.merge**2 * max(counts_F, default=1)
    return Bucket(len(ids), 0, max(1, len(counts_F)), patches), plans

  def decode(self, samples) -> list[list[str]]:
    """The texts of a `generate.Samples`: B lists of R, see `ChatTokenizer.decode`."""
    return self.tokenizer.decode_groups(samples.responses_BRT, samples.length_BR)

  def settings(self) -> dict:
    """Everything that decides what a prompt looks like, as JSON values (for metadata files)."""
    return {
      "tokenizer": self.tokenizer.fingerprint,
      "video": dataclasses.asdict(self.video),
      "image": dataclasses.asdict(self.image),
      "sampling": dataclasses.asdict(self.sampling),
      "outer_vision_wrapper": self.outer_vision_wrapper,
    }

  def frame_pictures(self, prompt: Prompt) -> list[np.ndarray]:
    """The resized frame pairs as pictures, for lossless storage (one PNG each).

    Returns:
      F arrays of uint8 [temporal * H, W, 3], the frames of a pair one below the other. A pair whose
      frames are all equal, such as a still image, is stored once: [H, W, 3].
      `patches_from_picture` is the exact inverse.
    """
    pictures = []
    for patches_SC, grid_2 in zip(prompt.patches, prompt.grid_F2, strict=True):
      frames_NHWC = images.unpatchify(
        patches_SC[None], grid_2, self.video.patch, self.video.temporal, self.video.merge
      )
      # A still is a pair of equal frames; a clip that stands still is stored as small.
      if (frames_NHWC == frames_NHWC[:1]).all():
        frames_NHWC = frames_NHWC[:1]
      pictures.append(frames_NHWC.reshape(-1, *frames_NHWC.shape[2:]))
    return pictures

  def _plan(self, medium: Medium) -> MediaPlan:
    """The frames, size and tokens of one image or clip."""
    budget = self.image if medium.kind == "image" else self.video
    seconds_N = np.zeros(0)
    if medium.kind == "image":
      source = image_of(medium.source).shape
    elif medium.times_N is not None:
      seconds_N = medium.times_N
      source = image_of(medium.source[0]).shape
    else:
      clip = media.look(medium.source, medium.start, medium.end, self.sampling)
      seconds_N = clip.seconds_N
      source = clip.frames_NHWC.shape[1:]
    count = max(1, len(seconds_N))
    seconds_F = chat.pair_seconds(seconds_N, self.video.temporal) if len(seconds_N) else ()
    height, width = budget.size(count, *source[:2])
    per_pair = (height // budget.factor) * (width // budget.factor)
    words = subtitles.between(medium.subtitles, seconds_N, seconds_F)
    layout = chat.MediaTokens(medium.kind, (per_pair,) * max(1, len(seconds_F)), seconds_F, words)
    return MediaPlan(count, height, width, layout)

  def _read(self, medium: Medium) -> _Read:
    """Decodes, resizes and cuts one image or clip."""
    # An image has no time; `patchify` repeats its one frame to a pair.
    if medium.kind == "image":
      frame_HWC = _fit(self.image, 1, image_of(medium.source))
      return self._pack("image", frame_HWC[None], np.full((1, 2), np.nan, np.float32), ())
    # Resized as they are decoded, so that one frame of full size is in memory and not all.
    fit = functools.partial(_fit, self.video)
    if medium.times_N is not None:
      times_N = seconds_N = medium.times_N
      frames_NHWC = _listed(medium.source, fit)
    else:
      window = (medium.start, medium.end)
      clip = media.decode(medium.source, *window, self.sampling, transform=fit)
      times_N = clip.times_N
      seconds_N = clip.seconds_N
      frames_NHWC = clip.frames_NHWC
    # [N] -> [F, 2]: first and last time of each pair, on the clock of the file.
    temporal = self.video.temporal
    times_N = images.pad_to_multiple(times_N, temporal).astype(np.float32)
    times_F2 = times_N.reshape(-1, temporal)[:, [0, -1]]
    seconds_F = chat.pair_seconds(seconds_N, temporal)
    words = subtitles.between(medium.subtitles, seconds_N, seconds_F)
    return self._pack("video", frames_NHWC, times_F2, seconds_F, words)

  def _pack(
    self,
    kind: str,
    frames_NHWC: np.ndarray,
    times_F2: np.ndarray,
    seconds_F: tuple[float, ...],
    words: tuple[str, ...] = (),
  ) -> _Read:
    """Cuts resized frames into patches and counts the tokens of each pair."""
    budget = self.video  # of its geometry, which images share
    patches_FSC = images.patchify(frames_NHWC, budget.patch, budget.temporal, budget.merge)
    frames, patches, _ = patches_FSC.shape
    rows, columns = (size // budget.patch for size in frames_NHWC.shape[1:3])
    counts_F = (patches // budget.merge**2,) * frames
    tokens = chat.MediaTokens(kind, counts_F, seconds_F, words)
    return _Read(patches_FSC, (rows, columns), times_F2, tokens)


def patches_from_picture(
  picture: np.ndarray, grid: Sequence[int], patch: int, merge: int, temporal: int = 2
) -> np.ndarray:
  """A stored picture of `Processor.frame_pictures` -> its patches, uint8 [S, C].

  Args:
    picture: uint8 [H, W, 3] (every frame of the pair alike) or [temporal * H, W, 3].
    grid: rows and columns of patches, so H = rows * patch and W = columns * patch.
    patch, merge, temporal: sizes of the model.

  Raises:
    UserError: the picture does not have the size that the grid asks for.
  """
  height = int(grid[0]) * patch
  width = int(grid[1]) * patch
  if picture.shape not in ((height, width, 3), (temporal * height, width, 3)):
    raise UserError(
      f"a stored picture has shape {picture.shape}, but its grid of {int(grid[0])} x "
      f"{int(grid[1])} patches of {patch} needs {height} or {temporal * height} rows and {width} "
      "columns; build the pool again"
    )
  # Of equal frames one was stored, and `patchify` repeats it to a pair.
  frames_NHWC = picture.reshape(-1, height, width, 3)
  return images.patchify(frames_NHWC, patch, temporal, merge)[0]


def read_geometry(folder: str | pathlib.Path) -> tuple[int, int, int]:
  """(patch, merge, temporal) of the model in `folder`, from `vision_config` of its config.json.

  Raises:
    UserError: the file is missing, not JSON, or lacks one of the three as a positive integer.
  """
  # Not by rmsd_jax.models.config: nothing that runs in workers may import jax.
  path = pathlib.Path(folder) / "config.json"
  try:
    vision = json.loads(path.read_text(encoding="utf-8"))["vision_config"]
    sizes = tuple(
      vision[key] for key in ("patch_size", "spatial_merge_size", "temporal_patch_size")
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} gives no vision_config with patch_size, spatial_merge_size and "
      f"temporal_patch_size ({type(error).__name__}: {error}); point to a Qwen3-VL model folder"
    ) from error
  if not all(isinstance(size, int) and size >= 1 for size in sizes):
    raise UserError(f"{path} has sizes {sizes} (patch, merge, temporal); positive integers needed")
  return sizes


# What the files say of frames and sizes, with the values of the released models.
_UNREAD = {
  "do_resize": True,
  "do_sample_frames": True,
  "fps": 2,
  "num_frames": None,
  "min_frames": 4,
  "max_frames": 768,
  "min_pixels": None,
  "max_pixels": None,
  "cap_pixels_per_frame": False,
}
_SIZES = (  # of pictures, of clips
  {"shortest_edge": 65_536, "longest_edge": 16_777_216},
  {"shortest_edge": 4_096, "longest_edge": 25_165_824},
)


def _check_preprocessors(folder: pathlib.Path, patch: int, merge: int, temporal: int) -> None:
  """Holds the files of transformers' processors against what is computed here."""
  wanted = {
    "patch_size": patch,
    "merge_size": merge,
    "temporal_patch_size": temporal,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
    "do_rescale": True,
    "do_normalize": True,
    "resample": 3,  # bicubic
  }
  for name in (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
  ):
    if not (path := folder / name).is_file():
      continue
    whole = chat.read_object(path)
    inner = [whole.get(part) for part in ("image_processor", "video_processor")]  # of 5.x
    for said in (part for part in (whole, *inner) if isinstance(part, dict)):
      for key, value in wanted.items():
        if said.get(key) not in (value, None):
          raise UserError(
            f"{path} says {key} {said[key]!r:.60}, but {value} is what the model is given here; "
            "take the file of the Qwen3-VL model"
          )
      told = {key: said[key] for key in _UNREAD if said.get(key) not in (_UNREAD[key], None)}
      told |= {"size": said["size"]} if said.get("size") not in (None, {}, *_SIZES) else {}
      if told:
        shown = ", ".join(f"{key} {value}" for key, value in told.items())
        warnings.warn(
          f"{path} says {shown}, which is not read: frames and sizes are those of the arguments "
          "(--frames, --video-pixels ..), else those of the released model",
          stacklevel=3,
        )


def _fit(budget: images.Budget, frames: int, picture_HWC: np.ndarray) -> np.ndarray:
  """Resizes one of `frames` pictures to the budget."""
  # The number of frames matters: a clip's limit is on the pixels of all of them.
  height, width = budget.size(frames, *picture_HWC.shape[:2])
  return images.resize_bicubic(picture_HWC[None], height, width, budget.flavour)[0]


def _listed(frames: Sequence, fit) -> np.ndarray:
  """The images of a clip that is given as a list of them, resized: uint8 [N, H, W, 3]."""
  fitted = []
  size = None
  for number, frame in enumerate(frames):
    picture_HWC = image_of(frame)
    size = size or picture_HWC.shape
    if picture_HWC.shape != size:
      raise UserError(
        f"frame {number} of a video has {picture_HWC.shape[1]} x {picture_HWC.shape[0]} pixels, "
        f"the first {size[1]} x {size[0]}; give frames of one size"
      )
    fitted.append(fit(len(frames), picture_HWC))
  return np.stack(fitted)
