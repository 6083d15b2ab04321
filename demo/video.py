"""Videos and pictures for people: mp4 files, videos side by side with labels, one picture of it all.

Videos are uint8 arrays [frames, height, width, 3].
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Video = NDArray[np.uint8]

FPS = 6
LOOPS = 2  # a clip of nine frames is over before one has looked
HOLD = 3  # times that the first and the last frame are shown again before the clip turns
INK, FAINT, PAPER = "#22252b", "#6b727d", "#ffffff"
GAP, HEAD = 16, 64  # pixels between videos and above them


def looped(video: Video) -> Video:
    """The clip as it is written: there and back several times, so that nothing jumps."""
    there = np.concatenate([video, np.repeat(video[-1:], HOLD, 0)])
    back = np.concatenate([video[::-1], np.repeat(video[:1], HOLD, 0)])
    return np.tile(np.concatenate([there, back]), (LOOPS, 1, 1, 1))


def enlarged(video: Video, factor: int = 3) -> Video:
    """Every frame `factor` times as large, smoothly."""
    height, width = (side * factor for side in video.shape[1:3])
    return np.stack([np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BICUBIC)) for f in video])


def write_mp4(path: Path, video: Video, fps: int = FPS) -> None:
    """Write an mp4 that browsers play: H.264 where PyAV has it, else MPEG-4. Width and height must be even."""
    codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(fps), options={"crf": "16"} if codec == "libx264" else {})
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        if codec == "mpeg4":
            stream.bit_rate = 4_000_000
        for frame in video:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def side_by_side(heading: str, titles: Sequence[tuple[str, str]], videos: Sequence[Video], head: int = HEAD) -> Video:
    """One video of several of equal size under a heading, each with a title and a line in ``head`` pixels above it."""
    count, height, width = videos[0].shape[:3]
    size = (len(videos) * (width + GAP) + GAP, 2 * GAP + 24 + head + height)
    paper = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
    pen = ImageDraw.Draw(paper)
    write(pen, (GAP, GAP), heading, 20, size[0] - 2 * GAP)
    for i, (title, line) in enumerate(titles):
        left, top = GAP + i * (width + GAP), GAP + 40
        write(pen, (left, top), title, 20, width + GAP)
        write(pen, (left, top + 26), line, 15, width, FAINT)
    canvas = np.repeat(np.asarray(paper)[None], count, 0)
    for i, video in enumerate(videos):
        left, top = GAP + i * (width + GAP), GAP + 24 + head
        canvas[:, top : top + height, left : left + width] = video
    return canvas


def grid(heading: str, titles: Sequence[tuple[str, str]], rows: Mapping[str, Sequence[Video]]) -> Image.Image:
    """Stills in rows, one for each prompt that names it, and columns that have the titles; a heading in large."""
    parts = [
        side_by_side(prompt, titles if first else [], cells, head=HEAD if first else 8)[0]
        for first, (prompt, cells) in zip([True, *[False] * len(rows)], rows.items())
    ]
    top = Image.new("RGB", (parts[0].shape[1], 2 * GAP + 26), PAPER)
    write(ImageDraw.Draw(top), (GAP, GAP), heading, 28, top.width - 2 * GAP)
    return Image.fromarray(np.concatenate([np.asarray(top), *parts]))


def write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, width: int, colour: str = INK) -> None:
    """The text in letters of that size, cut where it would be wider than `width` pixels."""
    text, font = " ".join(text.split()), ImageFont.load_default(size)
    if pen.textlength(text, font=font) > width:
        wider = (n for n in range(len(text)) if pen.textlength(text[:n] + "...", font=font) > width)
        text = text[: max(next(wider, len(text)) - 1, 0)] + "..."
    pen.text(at, text, fill=colour, font=font)


def strip(video: Video, shown: int = 3) -> Video:
    """One frame that shows some of the clip's frames, first to last, next to each other."""
    frames = [video[round(i * (len(video) - 1) / (shown - 1))] for i in range(shown)]
    gap = np.full((video.shape[1], 4, 3), 255, np.uint8)
    return np.concatenate([part for frame in frames for part in (frame, gap)][:-1], 1)[None]


def stacked(top: Image.Image, caption: str, bottom: Image.Image, share: float = 0.6) -> Image.Image:
    """Two pictures, the lower one smaller and under a caption; ``share``: its width, of the upper one's."""
    width = round(top.width * share)
    height = round(bottom.height * width / bottom.width)
    picture = Image.new("RGB", (top.width, top.height + 2 * GAP + 18 + height), PAPER)
    picture.paste(top, (0, 0))
    write(ImageDraw.Draw(picture), (GAP, top.height + GAP), caption, 15, top.width - 2 * GAP, FAINT)
    picture.paste(bottom.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (0, top.height + GAP + 18))
    return picture
