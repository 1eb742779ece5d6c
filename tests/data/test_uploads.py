from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omni_lab.batch import Modality
from omni_lab.data.uploads import MAX_UPLOAD_BYTES, UploadError, read_upload

SHAPES: dict[Modality, tuple[int, ...]] = {
    Modality.IMAGE: (3, 64, 64),
    Modality.VIDEO: (4, 3, 32, 32),
    Modality.AUDIO: (),
}


def saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    held = io.BytesIO()
    picture.save(held, format=kind, **options)  # type: ignore[arg-type]
    return held.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_a_picture(kind: str) -> None:
    modality, values = read_upload("a.bin", saved(Image.new("RGB", (100, 40), (250, 0, 0)), kind), SHAPES)
    assert modality is Modality.IMAGE and values.shape == (3, 64, 64) and values.dtype == torch.uint8
    assert values[0].min() > 240 and values[1:].max() < 15


def test_an_animation_gives_frames_evenly_over_its_time() -> None:
    frames = [Image.new("RGB", (20, 20), (shade, shade, shade)) for shade in range(0, 240, 30)]
    content = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    modality, values = read_upload("a.gif", content, SHAPES)
    assert modality is Modality.VIDEO and values.shape == (4, 3, 32, 32) and values.dtype == torch.uint8
    assert [round(float(frame.float().mean()) / 30) for frame in values] == [1, 3, 5, 7]


def test_two_views_in_one_photograph_are_a_picture() -> None:
    views = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    content = saved(views[0], "MPO", save_all=True, append_images=views[1:])
    modality, values = read_upload("phone.jpg", content, SHAPES)
    assert modality is Modality.IMAGE and values[0].min() > 240


def test_a_sound_is_brought_to_16_khz() -> None:
    held = io.BytesIO()
    wave = np.sin(np.arange(8000) / 8000 * 2 * np.pi * 440) / 2
    soundfile.write(held, wave, 8000, format="WAV")
    modality, values = read_upload("voice.wav", held.getvalue(), SHAPES)
    assert modality is Modality.AUDIO and values.shape == (16_000,) and values.dtype == torch.float32
    assert 0.45 < float(values.abs().max()) < 0.55


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(
        UploadError, match=r"^notes.txt: not a readable audio file .* expected an image, an animated GIF"
    ):
        read_upload("notes.txt", b"nothing of the kind", SHAPES)
    with pytest.raises(UploadError, match=r"^big.png: 40.0 MB: expected at most 8 MB"):
        read_upload("big.png", bytes(5 * MAX_UPLOAD_BYTES), SHAPES)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
        with pytest.raises(UploadError, match=r"^bomb.png: .*expected an image that fits into memory"):
            read_upload("bomb.png", saved(Image.new("1", (100, 100)), "PNG"), SHAPES)
    whole = saved(Image.effect_noise((100, 100), 90), "PNG")
    with pytest.raises(UploadError, match=r"^cut.png: not a readable image"):
        read_upload("cut.png", whole[: len(whole) // 2], SHAPES)
    held = io.BytesIO()
    soundfile.write(held, np.zeros(16_000 * 11), 16_000, format="WAV")
    with pytest.raises(UploadError, match="^long.wav: lasts 11.0 s: expected at most 10 s"):
        read_upload("long.wav", held.getvalue(), SHAPES)
