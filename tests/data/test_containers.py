"""What a file says of its frames: hidden packets, covers, display matrices, cuts, formats."""

import struct

import av
import numpy as np
import pytest
from clips import write_clip
from independent import ffmpeg, frames_and_times

from rmsd_jax.core.errors import MediaError
from rmsd_jax.data import children, containers, headers, media

ALL = media.Sampling(frames=10**6)


def two_passes(folder, codec, name, *last):
  """A clip with alternate references: packets that prepare frames and show none."""
  how = ("-c:v", codec, "-cpu-used", "2", "-auto-alt-ref", "1", "-lag-in-frames", "25", "-b:v",
         "80k", "-arnr-maxframes", "7", "-g", "128", "-passlogfile", folder / codec)  # fmt: skip
  source = ("-f", "lavfi", "-i", "testsrc2=s=96x64:d=4:r=24")
  ffmpeg(*source, *how, "-pass", "1", "-f", "null", "-")
  ffmpeg(*source, *how, "-pass", "2", *last, folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("containers")
  write_clip(folder / "plain.mp4")
  two_passes(folder, "libvpx", "vp8.webm")
  # VP9 packs a hidden frame and the next one into one packet; apart they stand in few containers.
  two_passes(folder, "libvpx-vp9", "vp9_packed.webm")
  split = ("-c", "copy", "-bsf:v", "vp9_superframe_split")
  ffmpeg("-i", folder / "vp9_packed.webm", *split, folder / "vp9.nut")
  return folder


def hidden(path):
  """Packets that give no frame, by ffmpeg's own count of both."""
  frames, _ = frames_and_times(path)
  with av.open(str(path)) as container:
    packets = sum(1 for packet in container.demux(video=0) if packet.size)
  return packets - len(frames)


@pytest.mark.parametrize(
  ("name", "packets"), [("vp8.webm", True), ("vp9.nut", True), ("vp9_packed.webm", False)]
)
def test_hidden_packets_are_no_frames(folder, name, packets):
  path = folder / name
  assert (hidden(path) > 1) is packets
  frames, times_N = frames_and_times(path)
  every = media.decode(path, sampling=ALL)
  np.testing.assert_array_equal(every.frames_NHWC, frames)
  np.testing.assert_allclose(every.times_N, times_N)
  for count in range(1, len(frames) + 1, 7):
    clip = media.decode(path, sampling=media.Sampling(frames=count))
    assert len(clip.indices_N) == count
    np.testing.assert_array_equal(clip.frames_NHWC, frames[clip.indices_N])


def test_hidden_packets_are_told_by_their_bytes(folder, monkeypatch):
  """Without that, the decoder's frames are held against the packets, and all is decoded."""
  wanted = media.decode(folder / "vp8.webm", sampling=media.Sampling(frames=11))
  line = containers.timeline(folder / "vp8.webm")
  containers._timeline.cache_clear()
  monkeypatch.setattr(headers, "is_hidden", lambda codec, content: False)
  assert len(containers.timeline(folder / "vp8.webm").stamps_N) > len(line.stamps_N)
  found = media.decode(folder / "vp8.webm", sampling=media.Sampling(frames=11))
  np.testing.assert_array_equal(found.indices_N, wanted.indices_N)
  np.testing.assert_array_equal(found.frames_NHWC, wanted.frames_NHWC)
  containers._timeline.cache_clear()


@pytest.mark.parametrize(
  ("content", "shown"),
  [
    (b"\x86\x00", True),  # marker 2, profile 0, a frame that is shown
    (b"\x84\x00", False),
    (b"\x88\x00", True),  # a frame of before is shown again
    (b"\xb2\x00", False),  # profile 3 has a bit more in front
    (b"\xb1\x00", True),
    (b"\x84\xaa\x86\xbb" + b"\xc1\x02\x02\xc1", True),  # a superframe: hidden, shown
    (b"\x84\xaa\x84\xbb" + b"\xc1\x02\x02\xc1", False),
    (b"\x84\xaa" + b"\xc1", False),  # ends like a superframe, but is none
  ],
)
def test_vp9_frames_tell_whether_they_are_shown(content, shown):
  assert headers.is_hidden("vp9", memoryview(content)) is not shown
  assert not headers.is_hidden("h264", memoryview(content))


def test_an_hour_is_not_decoded_for_a_few_frames(tmp_path, monkeypatch):
  path = tmp_path / "long.mp4"
  ffmpeg("-f", "lavfi", "-i", "testsrc2=s=32x32:d=600:r=25", "-c:v", "libx264", "-preset",
         "ultrafast", "-g", "50", path)  # fmt: skip
  seen = []
  frames_of = containers.frames_of

  def counted(container, stream):
    for frame in frames_of(container, stream):
      seen.append(frame.pts)
      yield frame

  monkeypatch.setattr(containers, "frames_of", counted)
  assert len(media.decode(path, sampling=media.Sampling(frames=16)).indices_N) == 16
  assert len(seen) <= 16 * 51 < 15_000


# The matrix as rows (a, b, u, c, d, v, x, y, w), and what it makes of a picture.
MATRICES = {
  "upright": ((1, 0, 0, 1), lambda p: p),
  "mirrored": ((-1, 0, 0, 1), lambda p: p[:, ::-1]),
  "flipped": ((1, 0, 0, -1), lambda p: p[::-1]),
  "half": ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
  "right": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
  "left": ((0, -1, 1, 0), lambda p: np.rot90(p)),
  "transposed": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
  "across": ((0, -1, -1, 0), lambda p: p[::-1, ::-1].swapaxes(0, 1)),
  "enlarged": ((2, 0, 0, 2), lambda p: p),
  "nothing": ((0, 0, 0, 0), lambda p: p),
}


class Turned:
  """A frame with a display matrix, as far as `upright` looks at it."""

  rotation = 30

  class Side:
    class type:
      name = "DISPLAYMATRIX"

    def __init__(self, content):
      self.content = content

    def __bytes__(self):
      return self.content

  def __init__(self, a, b, c, d):
    fixed = [int(value * 2**16) for value in (a, b, 0, c, d, 0, 0, 0)]
    self.side_data = [self.Side(struct.pack("9i", *fixed, 2**30))]


@pytest.mark.parametrize("name", MATRICES)
def test_the_display_matrix_is_applied_whole(name):
  matrix, expected = MATRICES[name]
  picture = np.arange(2 * 3 * 3).reshape(2, 3, 3)
  np.testing.assert_array_equal(containers.upright(Turned(*matrix), picture), expected(picture))


@pytest.mark.parametrize("matrix", [(0.87, 0.5, -0.5, 0.87), (1, 0.3, 0, 1), (1, 1, 1, 1)])
def test_turns_by_other_than_quarters_are_refused(matrix):
  with pytest.raises(ValueError, match="turned by 30 degrees; encode it upright"):
    containers.upright(Turned(*matrix), np.zeros((2, 3, 3)))


def test_a_clip_turned_by_30_degrees_is_refused(folder):
  ffmpeg("-display_rotation", "30", "-i", folder / "plain.mp4", "-c", "copy", folder / "30.mp4")
  with pytest.raises(MediaError, match="30.mp4: is to be shown turned by -?[0-9]+ degrees"):
    media.decode(folder / "30.mp4")


@pytest.mark.parametrize("target", ["cover.mp4", "cover.mkv", "cover.mov"])
def test_a_cover_picture_is_not_the_video(folder, target):
  ffmpeg("-f", "lavfi", "-i", "color=red:s=96x96:d=1", "-frames:v", "1", folder / "cover.png")
  cover = ("-i", folder / "cover.png")
  if target.endswith("mkv"):
    attach = ("-attach", folder / "cover.png", "-metadata:s:t", "mimetype=image/png")
    ffmpeg("-i", folder / "plain.mp4", *attach, "-c", "copy", folder / target)
  else:
    first = ("-map", "0", "-map", "1", "-c", "copy", "-disposition:v:0", "attached_pic")
    ffmpeg(*cover, "-i", folder / "plain.mp4", *first, folder / target)
  found = media.decode(folder / target, sampling=ALL)
  wanted = media.decode(folder / "plain.mp4", sampling=ALL)
  np.testing.assert_array_equal(found.frames_NHWC, wanted.frames_NHWC)
  np.testing.assert_allclose(found.times_N, wanted.times_N, atol=1e-3)


def test_a_song_with_a_cover_has_no_video(folder):
  ffmpeg("-f", "lavfi", "-i", "color=red:s=96x96:d=1", "-frames:v", "1", folder / "art.png")
  tone = ("-f", "lavfi", "-i", "sine=d=1", "-i", folder / "art.png", "-map", "0", "-map", "1")
  for name in ("song.mp3", "song.m4a"):
    ffmpeg(*tone, "-c:v", "copy", "-disposition:v:0", "attached_pic", folder / name)
    with pytest.raises(MediaError, match=f"{name}: has no video stream, only a cover picture"):
      media.decode(folder / name)


def test_a_size_that_changes_inside_the_stream_is_refused(folder):
  """Two clips of VP8 in one stream: each key frame carries its own size."""
  one = write_clip(folder / "one.webm", "libvpx", 12)
  ffmpeg("-f", "lavfi", "-i", "testsrc2=s=48x80:d=1:r=10", "-c:v", "libvpx", folder / "two.webm")
  with av.open(str(folder / "both.webm"), "w") as made:
    with av.open(str(one)) as source:
      stream = made.add_stream_from_template(source.streams.video[0])
    for place, path in enumerate((one, folder / "two.webm")):
      with av.open(str(path)) as source:
        for packet in source.demux(video=0):
          if packet.size:
            packet.pts += 1200 * place
            packet.dts = packet.pts
            packet.stream = stream
            made.mux(packet)
  with pytest.raises(MediaError, match="changes its size from 64 x 48 to 48 x 80 pixels in frame"):
    media.decode(folder / "both.webm")
  with pytest.raises(MediaError, match="changes its size from 64 x 48 to 48 x 80 pixels in frame"):
    media.look(folder / "both.webm")  # as `plan` does
  assert media.look(folder / "both.webm", 0.0, 1.0).frames_NHWC.shape == (1, 48, 64, 3)
  assert media.decode(folder / "both.webm", 0.0, 1.0).frames_NHWC.shape[1:] == (48, 64, 3)


@pytest.mark.parametrize(
  "name", ["a.mp4", "a.mkv", "a.webm", "a.avi", "a.mov", "fragmented.mp4", "a.flv"]
)
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_file_that_was_cut_off_is_refused(folder, name, share):
  path = folder / name
  codec = {"webm": "libvpx", "flv": "libx264", "avi": "mpeg4"}.get(name[-4:].strip("."), "libx264")
  options = {"movflags": "frag_keyframe+empty_moov"} if name == "fragmented.mp4" else {}
  content = write_clip(path, codec, container_options=options).read_bytes()
  media.decode(path)
  (folder / f"cut_{name}").write_bytes(content[: int(len(content) * share)])
  with pytest.raises(MediaError, match=r"cut off|no frames|no video|cannot be (decoded|read)"):
    media.decode(folder / f"cut_{name}")


def test_a_live_recording_states_no_size_and_is_read(folder):
  content = write_clip(folder / "live.webm", "libvpx", container_options={"live": "1"}).read_bytes()
  assert headers.stated_size(folder / "live.webm") == 0
  assert len(media.decode(folder / "live.webm", sampling=ALL).indices_N) == 60
  (folder / "longer.mkv").write_bytes(write_clip(folder / "b.mkv").read_bytes() + bytes(100))
  assert len(media.decode(folder / "longer.mkv", sampling=ALL).indices_N) == 60
  assert content


def foreign(folder):
  """Texts that name other files, and how they are called."""
  ffmpeg("-i", folder / "plain.mp4", "-c", "copy", folder / "part.ts")
  ffmpeg("-i", folder / "plain.mp4", "-frames:v", "1", folder / "frame1.png")
  playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:6,\npart.ts\n#EXT-X-ENDLIST\n"
  concat = "ffconcat version 1.0\nfile part.ts\n"
  dash = (
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    "<Period><AdaptationSet><Representation><BaseURL>plain.mp4</BaseURL></Representation>"
    "</AdaptationSet></Period></MPD>"
  )
  session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n"
  return {"list.m3u8": playlist, "list.mp4": playlist, "list.ts": playlist,
          "script.ffconcat": concat, "script.mp4": concat, "script.txt": concat, "dash.mpd": dash,
          "dash.mp4": dash,
          "session.sdp": session, "session.mp4": session}  # fmt: skip


def test_formats_that_name_other_files_are_refused(folder):
  for name, content in foreign(folder).items():
    (folder / name).write_text(content)
    with pytest.raises(MediaError, match=rf"{name}: (is in no video format|cannot be decoded)"):
      media.decode(folder / name)
  for name in ("frame%d.png", "frame1.png"):  # a pattern is no file, a picture no clip
    with pytest.raises(MediaError):
      media.decode(folder / name)


def test_a_name_is_a_file_and_no_address(folder, monkeypatch):
  monkeypatch.chdir(folder)
  (folder / "concat:plain.mp4|plain.mp4").write_bytes(b"no clip")
  with pytest.raises(MediaError, match="cannot be decoded"):
    media.decode("concat:plain.mp4|plain.mp4")
  for name in ("x" * 5000, "a\0b", "", "http://localhost/a.mp4", "/dev/zero", "."):
    with pytest.raises(MediaError, match="no such file"):
      media.decode(name)
    with pytest.raises(MediaError, match="no such file"):
      media.load_image(name)


def test_large_frames_are_refused(tmp_path):
  size = struct.pack("<HH", 10_000, 10_000)
  image = b"," + bytes(4) + struct.pack("<HH", 1, 1) + b"\x00\x02\x02D\x01\x00"
  head = b"GIF89a" + size + b"\x80\x00\x00" + bytes(6)
  (tmp_path / "wide.gif").write_bytes(head + image + image + b";")
  with pytest.raises(
    MediaError, match=r"wide.gif: (has frames of 10000 x 10000|cannot be decoded)"
  ):
    media.decode(tmp_path / "wide.gif")


def test_time_that_runs_backwards_is_refused(folder):
  part = ffmpeg("-i", folder / "plain.mp4", "-c", "copy", folder / "again.ts")
  assert part
  content = (folder / "again.ts").read_bytes()
  (folder / "again.ts").write_bytes(content + content)
  with pytest.raises(MediaError, match="again.ts: has time stamps that run backwards"):
    media.decode(folder / "again.ts")


def test_errors_come_back_from_children_as_one_line(folder):
  (folder / "playlist.mp4").write_text("#EXTM3U\n")
  tasks = [str(folder / "playlist.mp4"), str(folder / "plain.mp4")]
  found = [made for _, made in children.run(media.look, tasks, 1, 30.0)]
  assert found[0].kind == "MediaError" and "\n" not in found[0].reason
  assert found[1].indices_N[0] == 0
