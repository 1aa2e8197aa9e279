"""Named protocols: everything that decides what a model sees and how its reply is read.

Two scores can be compared where their protocols are the same, and only there. A preset is what one
harness does, as far as it can be done here; `note` says where it cannot, and what is our reading.
A set may differ from the preset in some fields (`Benchmark.presets`), a user in any (`changed`).
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from rmsd_jax.core.errors import UserError

AGGREGATIONS = ("micro", "macro")
COORDINATES = ("relative-1000", "pixels")
GOLDS = ("last", "first")
STYLES = ("hf_video", "utils_video")
TIMES = ("stamps", "index")
ASSISTANT = "You are a helpful assistant."


@dataclasses.dataclass(frozen=True)
class Protocol:
  """How a set is run.

  Attributes:
    name: of the preset.
    prompt: which of the set's prompts.
    system: of a turn before the question; "": none.
    thinking: whether the prompt asks for thoughts before the answer.
    frames: of a clip; 0: by `fps`, from `min_frames` to `max_frames`.
    video_style: what the pixel limits count, see `data.images.Budget`.
    video_min_pixels, video_max_pixels, image_min_pixels, image_max_pixels: limits after the resize.
    times: the clock, see `data.media.Sampling`.
    subtitles: whether they stand among the frames, see `data.subtitles.between`.
    temperature, top_p, top_k: of the sampling; temperature 0 is greedy, top_k 0 is none.
    max_tokens: of a reply.
    extractor: how the answer is read; one of `letters.EXTRACTORS`, or of the set.
    aggregation: which mean is the headline, where the set has a macro mean.
    gold: which place counts where the right option stands among the options twice.
    coord_mode: of boxes that a model writes and is told: thousandths of the picture, or pixels of
      the original video.
    note: what of it is a reading, or cannot be done here.
    changed: the fields that a user has set.
  """

  name: str
  prompt: str
  system: str = ""
  thinking: bool = False
  frames: int = 64
  fps: float = 2.0
  min_frames: int = 4
  max_frames: int = 768
  video_style: str = "utils_video"
  video_min_pixels: int = 131_072
  video_max_pixels: int = 786_432
  image_min_pixels: int = 4_096
  image_max_pixels: int = 16_777_216
  times: str = "stamps"
  subtitles: bool = False
  temperature: float = 0.0
  top_p: float = 1.0
  top_k: int = 0
  max_tokens: int = 1024
  extractor: str = "vlmevalkit-video"
  aggregation: str = "micro"
  gold: str = "last"
  coord_mode: str = "relative-1000"
  note: str = ""
  changed: tuple[str, ...] = ()

  def __post_init__(self):
    choices = {
      "aggregation": AGGREGATIONS,
      "coord_mode": COORDINATES,
      "gold": GOLDS,
      "video_style": STYLES,
      "times": TIMES,
    }
    for field, allowed in choices.items():
      if getattr(self, field) not in allowed:
        raise UserError(f"{field}={getattr(self, field)!r}: it is one of {', '.join(allowed)}")
    least = {"frames": 0, "min_frames": 1, "max_frames": self.min_frames, "max_tokens": 1}
    least |= {"top_k": 0, "video_min_pixels": 1, "image_min_pixels": 1, "temperature": 0}
    least |= {"video_max_pixels": self.video_min_pixels, "image_max_pixels": self.image_min_pixels}
    for field, lowest in least.items():
      if not getattr(self, field) >= lowest:
        raise UserError(f"{field}={getattr(self, field)}: give {lowest} or more")
    if not self.fps > 0 or not 0 < self.top_p <= 1:
      raise UserError(f"fps={self.fps}, top_p={self.top_p}: fps is above 0, top_p in (0, 1]")

  @property
  def title(self) -> str:
    """Its name, with what a user has changed."""
    changes = ", ".join(f"{name}={getattr(self, name)}" for name in self.changed)
    return f"{self.name} ({changes})" if changes else self.name

  @classmethod
  def from_json(cls, values: Mapping[str, Any]) -> "Protocol":
    return cls(**{**values, "changed": tuple(values["changed"])})

  def to_json(self) -> dict[str, Any]:
    """All fields as JSON values; `from_json` is the inverse."""
    values = dataclasses.asdict(self) | {"changed": list(self.changed)}
    # Younger than the hashes of cards, which stay what they are without it.
    if not self.subtitles:
      del values["subtitles"]
    return values

  def pool_flags(self) -> list[str]:
    """The flags of `pool plan` and `pool build` that show clips and pictures so."""
    if self.frames:
      sampling = ["--frames", str(self.frames)]
    else:
      limits = ("fps", "min_frames", "max_frames")
      sampling = [
        word
        for name in limits
        for word in (f"--{name.replace('_', '-')}", f"{getattr(self, name):g}")
      ]
    return [
      *sampling,
      *("--video-style", self.video_style, "--times", self.times),
      *("--video-pixels", f"{self.video_min_pixels},{self.video_max_pixels}"),
      *("--image-pixels", f"{self.image_min_pixels},{self.image_max_pixels}"),
    ]


_VLMEVALKIT = Protocol(
  name="vlmevalkit-64f",
  prompt="vlmevalkit",
  max_tokens=16_384,
  note="VLMEvalKit's Qwen3VLChat with *_64frame sets, no judge (exact_matching), greedy; its "
  "config samples with temperature 0.7",
)
_OPEN_O3 = Protocol(
  name="open-o3-video-64f",
  prompt="open-o3",
  thinking=True,
  frames=0,
  max_frames=64,
  video_max_pixels=262_144,
  max_tokens=8_192,
  extractor="open-o3",
  note="Open-o3-Video's harness in think mode, one sample: 2 frames a second, at most 64; without "
  "its repetition penalty of 1.05, and a reply without an answer is wrong instead of 'A'",
)
# What the sets of paper-64f that are VLMEvalKit's differ in from its Open-o3-Video part.
PAPER_BY_VLMEVALKIT = {
  name: getattr(_VLMEVALKIT, name)
  for name in ("prompt", "thinking", "video_max_pixels", "max_tokens", "extractor")
}
PRESETS = {
  preset.name: preset
  for preset in (
    dataclasses.replace(
      _OPEN_O3,
      name="paper-64f",
      frames=64,
      note="our reading of the paper, which published no code: Open-o3-Video's prompts and "
      "extractors for Video-MME, Video-MMMU, WorldSense and V-STaR, VLMEvalKit's for the others, "
      "64 frames, greedy",
    ),
    _VLMEVALKIT,
    _OPEN_O3,
    Protocol(
      name="lmms-eval-64f",
      prompt="lmms-eval",
      system=ASSISTANT,
      video_min_pixels=200_704,
      image_min_pixels=200_704,
      image_max_pixels=1_605_632,
      extractor="lmms-eval",
      note="lmms-eval's qwen3_vl with max_num_frames=64; an unparsed reply is wrong, where "
      "LongVideoBench draws a letter and WorldSense takes 'A'",
    ),
    Protocol(
      name="qwen-2fps",
      prompt="qwen",
      frames=0,
      max_frames=512,
      video_style="hf_video",
      video_min_pixels=3_584,
      video_max_pixels=38_535_168,
      temperature=0.7,
      top_p=0.8,
      top_k=20,
      max_tokens=32_768,
      extractor="videomme-regex",
      note="Qwen3-VL's own Video-MME script: 2 frames a second, at most 512, 19,267,584 pixels a "
      "pair of frames in all; clips under 48 s get more than its 401,408 pixels a frame; no "
      "presence penalty, no judge; for other sets the prompts are VLMEvalKit's, which is our "
      "reading",
    ),
  )
}


def protocol_named(
  name: str,
  of_set: Mapping[str, Mapping[str, Any]],
  overrides: Sequence[str] = (),
) -> Protocol:
  """A preset as a set has it, with a user's changes.

  Args:
    of_set: `Benchmark.presets`.
    overrides: "field=value" each.

  Raises:
    UserError: there is no such preset or field, or the value does not fit.
  """
  if name not in PRESETS:
    raise UserError(f"--protocol {name!r}: use one of {', '.join(PRESETS)}")
  preset = PRESETS[name]
  if name in of_set:
    preset = dataclasses.replace(preset, **of_set[name])
  given = dict(_override(text, preset) for text in overrides)
  kept = {field: value for field, value in given.items() if value != getattr(preset, field)}
  return dataclasses.replace(preset, **kept, changed=tuple(sorted(kept)))


def _override(text: str, preset: Protocol) -> tuple[str, Any]:
  field, equals, value = text.partition("=")
  fields = {f.name: f.type for f in dataclasses.fields(Protocol)}
  known = [name for name in fields if name not in ("name", "changed")]
  if not equals or field not in known:
    close = difflib.get_close_matches(field, known, 1)
    hint = f", did you mean {close[0]}?" if close else ""
    raise UserError(f"--set {text!r}: give field=value, a field of {', '.join(known)}{hint}")
  kind = type(getattr(preset, field))
  try:
    if kind is bool:
      return field, {"true": True, "false": False}[value.lower()]
    return field, kind(value)
  except (ValueError, KeyError):
    raise UserError(f"--set {text!r}: {field} is of the kind {kind.__name__}") from None
