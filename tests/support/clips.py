"""Small clips written for a test, and what torch makes of their frames."""

import fractions

import av
import numpy as np
import torch

FRAMES, RATE, STEP = 60, 10, 4  # frame i is grey of level i * STEP


def write_clip(
  path, codec="libx264", frames=FRAMES, container_options=None, rotation=None, stamps=None
):
  """A clip that tells the number of each frame by its grey, with a white top left corner."""
  with av.open(str(path), "w", options=container_options or {}) as container:
    stream = container.add_stream(codec, rate=RATE)
    stream.width, stream.height = 64, 48
    stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    stream.bit_rate = 4_000_000
    if codec == "libx264":
      stream.options = {"g": "12", "bf": "2", "crf": "10"}
    if rotation is not None:
      stream.set_display_rotation(rotation)
    for number in range(frames):
      picture = np.full((48, 64, 3), number * STEP, np.uint8)
      picture[:8, :8] = 255
      frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
      if stamps is not None:
        frame.pts, frame.time_base = stamps[number], fractions.Fraction(1, RATE)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return path


def write_noise(path, rng, frames=12):
  """A clip of 48 x 48 noise, 4 frames a second."""
  with av.open(str(path), "w") as container:
    stream = container.add_stream("libx264", rate=4)
    stream.width = stream.height = 48
    stream.pix_fmt = "yuv420p"
    for _ in range(frames):
      picture = rng.integers(0, 255, (48, 48, 3), np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
    container.mux(stream.encode())


def torch_resize(frames_NHWC, height, width, flavour):
  """What torchvision's resize runs underneath: uint8 for transformers, float32 for utils."""
  frames = torch.from_numpy(frames_NHWC).permute(0, 3, 1, 2)
  if flavour == "utils":
    frames = frames.float()
  resized = torch.nn.functional.interpolate(
    frames, size=(height, width), mode="bicubic", antialias=True, align_corners=False
  )
  return resized.clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
