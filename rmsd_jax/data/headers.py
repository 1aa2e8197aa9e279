"""Bytes of video files that the library does not tell of: stated sizes, packets without a frame."""

import os

_LARGEST_INDEX = 2**20  # bytes of a box that is read: an index has at most 65,535 entries of 12
_SYNC = b"G"  # 0x47, which begins a packet of an MPEG transport stream


def stated_size(path: str) -> int:
  """Bytes that a file must have at least by its own structure; 0 where it does not say."""
  with open(path, "rb") as file:
    head = file.read(12)
    if head[:4] == b"\x1a\x45\xdf\xa3":
      return _matroska_size(file)
    if head[:4] == b"RIFF" and head[8:] == b"AVI ":
      # Some writers count the eight bytes of this header, too.
      return int.from_bytes(head[4:8], "little")
    if head[:4] == b"OggS":
      return _ogg_size(file)
    if head[:4] == b"GIF8":
      return _gif_size(file)
    if _SYNC in (head[:1], head[4:5]) and (size := _packets_size(file)):
      return size
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide"):
      return _boxes_size(file)
  return 0


def _matroska_size(file) -> int:
  """Where the segment ends that holds everything.

  A live recording does not know: where its last element ends, if that lies beyond the file; else 0.
  """
  file.seek(4)
  header = _matroska_number(file)
  file.seek(header or 0, os.SEEK_CUR)
  if header is None or file.read(4) != b"\x18\x53\x80\x67":
    return 0
  size = _matroska_number(file)
  return _elements_end(file) if size is None else file.tell() + size


def _elements_end(file) -> int:
  """Where the elements end from here on, if that lies beyond the file; else 0."""
  place = file.tell()
  end = file.seek(0, os.SEEK_END)
  while place < end:
    file.seek(place)
    head = file.read(12)  # an id of at most four bytes, a size of at most eight
    name = 9 - head[0].bit_length()
    if name > 4:
      return 0  # something else follows
    length = 9 - head[name].bit_length() if len(head) > name else 1
    place += name + length
    if length > 8 or place > end:
      continue
    size = int.from_bytes(head[name : name + length], "big") - (1 << 7 * length)
    # Of a cluster that does not know its size, either, what is in it follows.
    place += 0 if size == (1 << 7 * length) - 1 else size
  return place if place > end else 0


def _matroska_number(file) -> int | None:
  """An EBML size: the leading zeros of the first byte tell its length; all ones: unknown."""
  first = file.read(1)
  if not first or not first[0]:
    return None
  length = 9 - first[0].bit_length()
  value = int.from_bytes(first + file.read(length - 1), "big") - (1 << 7 * length)
  return None if value == (1 << 7 * length) - 1 else value


def _boxes_size(file) -> int:
  """Where the last box of an MP4 file ends that is there to play it."""
  wanted = 0
  place = 0
  end = file.seek(0, os.SEEK_END)
  while place + 8 <= end:
    file.seek(place)
    size = int.from_bytes(file.read(4), "big")
    kind = file.read(4)
    if size == 1:
      size = int.from_bytes(file.read(8), "big")
    if size < 8:  # 0: to the end of the file
      break
    place += size
    if kind in (b"moov", b"moof", b"mdat"):
      wanted = max(wanted, place)
    if kind == b"sidx":
      wanted = max(wanted, place + _indexed(file.read(min(size, _LARGEST_INDEX))))
  return wanted


def _indexed(index: bytes) -> int:
  """Bytes that a segment index (sidx, ISO 14496-12) says to follow it.

  Args:
    index: what stands in the box.
  """
  wide = 8 if index[:1] == b"\1" else 4  # two fields of its version 1
  first = int.from_bytes(index[12 + wide : 12 + 2 * wide], "big")
  entries = 16 + 2 * wide
  count = int.from_bytes(index[entries - 2 : entries], "big")
  places = range(entries, entries + 12 * count, 12)
  # The highest bit says what an entry leads to.
  sizes = [int.from_bytes(index[place : place + 4], "big") & 0x7FFFFFFF for place in places]
  return first + sum(sizes) if count else 0


def stated_seconds(path: str) -> float:
  """Seconds that a fragmented MP4 file states for all of its fragments (mehd); 0 elsewhere."""
  with open(path, "rb") as file:
    whole = (0, file.seek(0, os.SEEK_END))
    movie = _box(file, b"moov", whole)
    about = _read_box(file, _box(file, b"mvhd", movie))
    told = _read_box(file, _box(file, b"mehd", _box(file, b"mvex", movie)))
  units = int.from_bytes(about[20:24] if about[:1] == b"\1" else about[12:16], "big")
  length = int.from_bytes(told[4:12] if told[:1] == b"\1" else told[4:8], "big")
  return length / units if units else 0.0


def _box(file, kind: bytes, inside: tuple[int, int]) -> tuple[int, int]:
  """Where the contents of the first box of a kind begin and end; nowhere if there is none."""
  place, end = inside
  while place + 8 <= end:
    file.seek(place)
    size = int.from_bytes(file.read(4), "big")
    found = file.read(4)
    if size == 1:
      size = int.from_bytes(file.read(8), "big")
    if size < 8:
      break
    if found == kind:
      return file.tell(), min(place + size, end)
    place += size
  return 0, 0


def _read_box(file, inside: tuple[int, int]) -> bytes:
  file.seek(inside[0])
  return file.read(min(inside[1] - inside[0], _LARGEST_INDEX))


def _ogg_size(file) -> int:
  """Where the last page ends, if that lies beyond the file; else 0: a recording may end anywhere
  between two pages (RFC 3533)."""
  end = file.seek(0, os.SEEK_END)
  place = 0
  while place < end:
    file.seek(place)
    head = file.read(27)
    if head[:4] != b"OggS"[: len(head)]:
      return 0  # something else follows
    sizes = file.read(head[26]) if len(head) == 27 else b""
    place += 27 + (head[26] if len(head) == 27 else 0) + sum(sizes)
  return place if place > end else 0


def _gif_size(file) -> int:
  """Where the last block ends, if that lies beyond the file; else 0, as for a GIF whose trailer
  alone is missing (GIF89a)."""
  end = file.seek(0, os.SEEK_END)
  file.seek(10)
  place = 13 + _colours(file.read(1))
  while place < end:
    file.seek(place)
    kind = file.read(1)
    if kind == b"\x2c":  # a picture: place, size, colours, code size
      file.seek(place + 9)
      place += 11 + _colours(file.read(1))
    elif kind == b"\x21":  # an extension: its label
      place += 2
    else:  # the trailer, or what is no GIF any more
      return 0
    size = 1
    while size and place < end:  # the blocks of data, up to an empty one
      file.seek(place)
      size = (file.read(1) or b"\0")[0]
      place += 1 + size
    if size:
      place += 1
  return place if place > end else 0


def _colours(packed: bytes) -> int:
  """Bytes of the table of colours that a packed field of a GIF states."""
  return 3 << (packed[0] & 7) + 1 if packed and packed[0] & 0x80 else 0


def _packets_size(file) -> int:
  """Where the last packet of an MPEG transport stream ends, if that lies beyond the file; else 0:
  such a stream states no length."""
  end = file.seek(0, os.SEEK_END)
  for size, first in ((188, 0), (192, 4)):  # plain, and with a time before each packet (M2TS)
    places = range(first, min(end, first + 5 * size), size)
    if end > 2 * size and all(_byte_at(file, place) == _SYNC for place in places):
      return -(-end // size) * size if end % size else 0
  return 0


def _byte_at(file, place: int) -> bytes:
  file.seek(place)
  return file.read(1)


def is_hidden(codec: str, content: memoryview) -> bool:
  """Whether a packet of VP8 or VP9 only prepares frames (alternate references) and shows none.

  Args:
    codec: as ffmpeg names it.
    content: the bytes of the packet, at least one.
  """
  if codec not in ("vp8", "vp9"):
    return False
  if codec == "vp8":
    return not content[0] & 0x10  # show_frame of the frame tag (RFC 6386, 9.1)
  return not any(_vp9_shows(content[place]) for place in _vp9_frames(content))


def _vp9_frames(content: memoryview) -> list[int]:
  """Where the frames of a VP9 packet begin: several in a superframe (its specification, B)."""
  marker = content[-1]
  count = (marker & 7) + 1
  width = (marker >> 3 & 3) + 1
  head = len(content) - 2 - count * width
  if marker >> 5 != 0b110 or head < 0 or content[head] != marker:
    return [0]
  sizes = [
    int.from_bytes(content[head + 1 + i * width : head + 1 + (i + 1) * width], "little")
    for i in range(count)
  ]
  places = [sum(sizes[:i]) for i, size in enumerate(sizes) if size]
  return [place for place in places if place < head]


def _vp9_shows(first: int) -> bool:
  """By a frame's first byte: marker, profile (3 has one more bit), show_existing, type, show."""
  profile_3 = first >> 4 & 3 == 3
  rest = first << 1 if profile_3 else first
  return bool(rest & 0b1000 or rest & 0b10)
