"""What strangers send is refused with its name, before it can do harm."""

from __future__ import annotations

import base64
import io
import struct
import wave
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from omni_lab.serving import media
from omni_lab.serving.media import Limits, MediaError

LIMITS = Limits(pixels=10_000, seconds=2.0, frames=4, body_bytes=100_000)


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    written = io.BytesIO()
    with wave.open(written, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples * 32767).astype("<i2").tobytes())
    return written.getvalue()


def png(width: int = 8, height: int = 6, color: tuple[int, ...] = (255, 0, 0), mode: str = "RGB") -> bytes:
    written = io.BytesIO()
    Image.new(mode, (width, height), color).save(written, "PNG")
    return written.getvalue()


def gif(count: int) -> bytes:
    written = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), (40 * i, 0, 255 - 40 * i)) for i in range(count)]
    frames[0].save(written, "GIF", save_all=True, append_images=frames[1:])
    return written.getvalue()


def bomb() -> bytes:
    """A PNG whose header tells of 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png()[33:]


def test_pictures_clips_and_sounds_are_read() -> None:
    picture = media.read_picture(png(), (3, 4, 4), name="picture", limits=LIMITS)
    assert picture.shape == (3, 4, 4) and picture[:, 0, 0].tolist() == [255, 0, 0]
    clear = media.read_picture(png(color=(0, 0, 0, 0), mode="RGBA"), (3, 4, 4), name="picture", limits=LIMITS)
    assert (clear == 255).all(), "transparency is white"
    deep = io.BytesIO()
    Image.fromarray(np.full((4, 4), 30_000, np.uint16)).save(deep, "PNG")
    gray = media.read_picture(deep.getvalue(), (3, 4, 4), name="picture", limits=LIMITS)
    assert (gray == 30_000 // 257).all(), "16 bits are not cut off"
    clip = media.read_clip(gif(4), (2, 3, 4, 4), name="clip", limits=LIMITS)
    assert clip.shape == (2, 3, 4, 4) and abs(int(clip[0, 0, 0, 0]) - 40) < 12 and abs(int(clip[1, 0, 0, 0]) - 120) < 12
    assert media.is_animation(gif(2), name="clip", limits=LIMITS)
    assert not media.is_animation(png(), name="picture", limits=LIMITS)
    frames = media.read_frames([png(color=(i, 0, 0)) for i in (10, 200)], (4, 3, 4, 4), name="video", limits=LIMITS)
    assert frames[:, 0, 0, 0].tolist() == [10, 10, 200, 200]
    tone = np.sin(np.arange(12_000) / 24_000 * 2 * np.pi * 440).astype(np.float32) * 0.5
    sound = media.read_sound(wav(tone, 24_000), name="sound", limits=LIMITS)
    assert len(sound) == 8000 and abs(np.abs(sound).max() - 0.5) < 0.02
    again = media.read_pcm16((tone * 32767).astype("<i2").tobytes(), name="sound")
    assert len(again) == 8000 and np.abs(again[200:-200] - sound[200:-200]).max() < 0.01
    assert media.decode_data_url("data:image/png;base64,YWJj", name="x", limits=LIMITS) == b"abc"


LONG = wav(np.zeros(16_000))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wav(np.zeros(40_000)), r"sound: lasts 2.5 s: expected at most 2 s"),
        (wav(np.zeros(0)), r"sound: .*zero samples"),
        (LONG[:9000], r"sound: its header tells of 32044 bytes: it has 9000|truncated"),
        (LONG[:4] + struct.pack("<I", 900_000) + LONG[8:], "its header tells of 900008 bytes: it has 32044"),
        (b"RIFF", "sound: not a readable sound file"),
        (b"", "sound: not a readable sound file"),
        (png(), "sound: not a readable sound file"),
    ],
)
def test_sounds_that_lie_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        media.read_sound(content, name="sound", limits=LIMITS)


def test_an_hour_is_refused_by_its_header() -> None:
    hour = wav(np.zeros(100), 8)[:40] + struct.pack("<I", 2 * 16_000 * 3600)
    with pytest.raises(MediaError):
        media.read_sound(hour, name="sound", limits=LIMITS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (png(200, 100), "picture: 200 x 100 pixels: expected at most 10000 in all"),
        (bomb(), r"picture: .*(decompression bomb|pixels: expected at most)"),
        (png()[:50], "picture: a damaged image|picture: not a readable image"),
        (LONG, "picture: not a readable image of PNG, JPEG, WEBP, GIF, BMP"),
    ],
)
def test_pictures_that_are_too_large_or_broken_are_refused(content: bytes, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        media.read_picture(content, (3, 4, 4), name="picture", limits=LIMITS)


def test_clips_have_few_frames() -> None:
    with pytest.raises(MediaError, match="clip: 5 frames: expected at most 4"):
        media.read_clip(gif(5), (2, 3, 4, 4), name="clip", limits=LIMITS)
    with pytest.raises(MediaError, match="video: 0 frames: expected 1 to 4"):
        media.read_frames([], (2, 3, 4, 4), name="video", limits=LIMITS)
    with pytest.raises(MediaError, match=r"video\[1\]: not a readable image"):
        media.read_frames([png(), b"no"], (2, 3, 4, 4), name="video", limits=LIMITS)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.com/cat.png", "image: expected a data URL with base64, as this server fetches nothing"),
        ("file:///etc/passwd", "fetches nothing: got 'file:///etc/passwd'"),
        ("data:image/png,abc", "expected a data URL with base64"),
        ("data:image/png;base64,a*b=", "image: not valid base64"),
        ("data:image/png;base64,", "image: empty"),
        ("data:image/png;base64," + "A" * 200_000, "image: 200000 characters of base64: expected at most 100000 bytes"),
    ],
)
def test_urls_are_data_or_nothing(url: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        media.decode_data_url(url, name="image", limits=LIMITS)


def test_pcm_has_whole_samples() -> None:
    with pytest.raises(MediaError, match="audio: 3 bytes: expected samples of two bytes"):
        media.read_pcm16(b"abc", name="audio")


@given(st.binary(max_size=400), st.sampled_from([b"", png()[:30], LONG[:60], gif(2)[:40]]))
def test_any_bytes_are_read_or_refused(noise: bytes, start: bytes) -> None:
    for read in (
        lambda c: media.read_picture(c, (3, 4, 4), name="x", limits=LIMITS),
        lambda c: media.read_clip(c, (2, 3, 4, 4), name="x", limits=LIMITS),
        lambda c: media.read_sound(c, name="x", limits=LIMITS),
        lambda c: media.decode_data_url(f"data:;base64,{base64.b64encode(c).decode()}", name="x", limits=LIMITS),
    ):
        try:
            read(start + noise)
        except MediaError as error:
            assert str(error).startswith("x")
