from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from omni_lab.batch import SAMPLE_RATE
from omni_lab.data.media_io import MAX_CHANNELS, AudioError, ImageError, prepare_audio, read_audio, read_image


def sine(frequency: float, rate: int, seconds: float = 0.5) -> np.ndarray:
    """[S] float32 of amplitude 0.5."""
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def loudest_frequency(sound: np.ndarray) -> float:
    """Hz, to the nearest bin."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(spectrum.argmax() * SAMPLE_RATE / len(sound))


def test_a_sound_in_the_right_form_passes_unchanged_and_is_not_shared() -> None:
    sound = sine(440, SAMPLE_RATE)
    prepared = prepare_audio(sound, SAMPLE_RATE, name="a")
    assert np.array_equal(prepared, sound) and prepared.dtype == np.float32
    prepared[0] = 1.0
    assert sound[0] == 0.0


def test_silence_is_a_legal_sound() -> None:
    assert np.array_equal(prepare_audio(np.zeros(100), SAMPLE_RATE, name="a"), np.zeros(100))


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_other_rates_come_out_at_16_khz(rate: int) -> None:
    sound = prepare_audio(sine(1000, rate), rate, name="a")
    assert sound.shape == (8_000,) and sound.dtype == np.float32
    assert loudest_frequency(sound) == pytest.approx(1000, abs=4)
    assert np.abs(sound[1000:-1000]).max() == pytest.approx(0.5, abs=0.01)


def test_frequencies_that_16_khz_cannot_hold_are_removed() -> None:
    assert np.abs(prepare_audio(sine(12_000, 44_100), 44_100, name="a")[1000:-1000]).max() < 0.01


@pytest.mark.parametrize("rate", [1, 7, 15_996, 15_999, 22_255, 44_101, 999_999_937])
def test_odd_rates_cost_no_more(rate: int) -> None:
    count = min(rate, 20_000)
    expected = count * SAMPLE_RATE / rate
    assert len(prepare_audio(np.ones(count), rate, name="a")) == pytest.approx(expected, rel=3e-4, abs=1)


@pytest.mark.parametrize("form", ["array", "tensor"])
def test_two_channels_are_averaged(form: str) -> None:
    stereo = np.stack([np.full(10, 0.5), np.full(10, -0.1)])
    samples = torch.from_numpy(stereo) if form == "tensor" else stereo
    assert np.allclose(prepare_audio(samples, SAMPLE_RATE, name="a"), 0.2)


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([-(2**15), 0, 2**14], dtype=np.int16), [-1.0, 0.0, 0.5]),
        (np.array([-(2**31), 0, 2**30], dtype=np.int32), [-1.0, 0.0, 0.5]),
        (np.array([0, 128, 192], dtype=np.uint8), [-1.0, 0.0, 0.5]),
        (torch.tensor([-(2**15), 0, 2**14], dtype=torch.int16), [-1.0, 0.0, 0.5]),
        (torch.tensor([-1.0, 0.0, 0.5], dtype=torch.bfloat16, requires_grad=True), [-1.0, 0.0, 0.5]),
        (np.array([-1.0, 0.0, 0.5], dtype=np.float64), [-1.0, 0.0, 0.5]),
    ],
    ids=["int16", "int32", "uint8", "tensor of int16", "tensor of bfloat16", "float64"],
)
def test_whole_numbers_are_scaled(samples: np.ndarray | torch.Tensor, expected: list[float]) -> None:
    sound = prepare_audio(samples, SAMPLE_RATE, name="a")
    assert sound.dtype == np.float32 and np.allclose(sound, expected)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("rate", [SAMPLE_RATE, 44_100])
def test_nan_and_infinity_are_named(bad: float, rate: int) -> None:
    samples = np.zeros((2, 100))
    samples[1, 50] = bad
    with pytest.raises(AudioError, match="lost: 1 of 200 samples are NaN or infinite: expected finite"):
        prepare_audio(samples, rate, name="lost")


@pytest.mark.parametrize("shape", [(0,), (2, 0)])
def test_zero_length_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=r"lost: got shape \[.*0\], zero samples: expected at least one"):
        prepare_audio(np.zeros(shape), SAMPLE_RATE, name="lost")


@pytest.mark.parametrize("shape", [(), (100, 2), (MAX_CHANNELS + 1, 100), (0, 100), (1, 2, 100)])
def test_other_shapes_are_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(AudioError, match=r"lost: got shape \[.*\]: expected \[S\] or \[channels, S\]"):
        prepare_audio(np.zeros(shape), SAMPLE_RATE, name="lost")


@pytest.mark.parametrize("rate", [0, -16_000, True, 10**12])
def test_a_bad_rate_is_named(rate: int) -> None:
    with pytest.raises(AudioError, match=f"lost: the sample rate is {rate}: expected an int from 1 to"):
        prepare_audio(np.zeros(100), rate, name="lost")


@pytest.mark.parametrize("samples", [np.zeros(9, dtype=bool), torch.zeros(9, dtype=torch.complex64)])
def test_a_wrong_type_is_named(samples: np.ndarray | torch.Tensor) -> None:
    with pytest.raises(AudioError, match="lost: got samples of type (bool|complex64): expected floats or ints"):
        prepare_audio(samples, SAMPLE_RATE, name="lost")


def test_a_sound_ten_times_too_long_is_named() -> None:
    with pytest.raises(AudioError, match=r"lost: lasts 300\.0 s: expected at most 30 s"):
        prepare_audio(np.zeros(300 * 8_000, dtype=np.int8), 8_000, name="lost")
    assert len(prepare_audio(np.zeros(160), SAMPLE_RATE, name="a", max_seconds=0.01)) == 160, "exactly as long"


@pytest.mark.parametrize("ending", ["wav", "flac"])
def test_files_are_read(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"stereo.{ending}"
    soundfile.write(path, np.stack([sine(1000, 44_100), sine(1000, 44_100)], axis=1), 44_100)
    sound = read_audio(path)
    assert sound.shape == (8_000,) and sound.dtype == np.float32
    assert loudest_frequency(sound) == pytest.approx(1000, abs=4)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"nowhere\.wav: no such audio file"):
        read_audio(tmp_path / "nowhere.wav")
    with pytest.raises(AudioError, match="not a readable audio file"):
        read_audio(tmp_path)
    (tmp_path / "text.wav").write_text("not a sound")
    with pytest.raises(AudioError, match=r"text\.wav: not a readable audio file"):
        read_audio(tmp_path / "text.wav")
    cut = tmp_path / "cut.flac"
    soundfile.write(cut, sine(440, SAMPLE_RATE), SAMPLE_RATE)
    cut.write_bytes(cut.read_bytes()[:-1000])
    with pytest.raises(AudioError, match=r"cut\.flac: not a readable audio file"):
        read_audio(cut)


def test_files_with_bad_sounds_are_named(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"none\.wav: got shape \[1, 0\], zero samples"):
        read_audio(tmp_path / "none.wav")
    soundfile.write(tmp_path / "nan.wav", np.full(10, np.nan), SAMPLE_RATE, subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav: 10 of 10 samples are NaN"):
        read_audio(tmp_path / "nan.wav")
    soundfile.write(tmp_path / "long.wav", np.zeros(SAMPLE_RATE), SAMPLE_RATE)
    with pytest.raises(AudioError, match=r"long\.wav: lasts 1\.0 s: expected at most 0\.1 s"):
        read_audio(tmp_path / "long.wav", max_seconds=0.1)


def test_pictures_of_16_bits_keep_their_greys(tmp_path: Path) -> None:
    ramp = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    read = read_image(tmp_path / "ramp.png", size=64, exact=False)
    assert np.array_equal(read[0], ramp // 257) and np.array_equal(read[0], read[2])


def test_pictures_are_turned_as_their_camera_says(tmp_path: Path) -> None:
    upright = Image.new("RGB", (64, 64), "black")
    upright.paste("white", (0, 0, 64, 32))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    upright.rotate(180).save(tmp_path / "phone.png", exif=exif)
    read = read_image(tmp_path / "phone.png", size=64, exact=False)
    assert read[0, 10, 30] == 255 and read[0, 50, 30] == 0


def test_pictures_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "deep.tiff")
    with pytest.raises(ImageError, match=r"deep.tiff: pixels of mode F: expected at most 16 bits for each channel"):
        read_image(tmp_path / "deep.tiff", size=8, exact=False)
