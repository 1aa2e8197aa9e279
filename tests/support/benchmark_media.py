"""Small clips and pictures for folders of evaluation sets, and the forms that their files take."""

import base64
import csv
import functools
import io
import json
import pathlib
import tempfile

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from PIL import Image

WIDTH, HEIGHT, RATE = 64, 48, 4


@functools.cache
def clip(seconds=4, shade=0):
  """The bytes of an MP4 file whose frames get brighter."""
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "clip.mp4")
    with av.open(str(path), "w") as container:
      stream = container.add_stream("libx264", rate=RATE)
      stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
      for number in range(seconds * RATE):
        grey = (40 * shade + 8 * number) % 256
        picture = np.full((HEIGHT, WIDTH, 3), grey, np.uint8)
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
      container.mux(stream.encode())
    return path.read_bytes()


def put_clip(path, shade=0):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(clip(shade=shade % 4))


@functools.cache
def picture(shade=0, form="PNG"):
  """The bytes of a picture file."""
  file = io.BytesIO()
  Image.new("RGB", (48, 40), (shade * 37 % 256, 120, 200)).save(file, form)
  return file.getvalue()


def in_base64(shade=0):
  return base64.b64encode(picture(shade)).decode("ascii")


def put_json(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def put_parquet(path, rows):
  path.parent.mkdir(parents=True, exist_ok=True)
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def put_table(path, rows):
  """A table as pandas writes it: cells with tabs, quotes or line ends are quoted, None is empty."""
  path.parent.mkdir(parents=True, exist_ok=True)
  names = list(dict.fromkeys(name for row in rows for name in row))
  with open(path, "w", encoding="utf-8", newline="") as file:
    writer = csv.writer(file, delimiter="\t", lineterminator="\n")
    writer.writerow(names)
    for row in rows:
      writer.writerow(["" if row.get(name) is None else row[name] for name in names])
