from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omni_lab.batch import SAMPLE_RATE
from omni_lab.data.media_io import AudioError
from omni_lab.data.sources.base import SPLITS, SourceError
from omni_lab.data.sources.speech_corpora import Recording, human_recordings, librispeech, speech_commands

RECORDINGS = Path(__file__).parents[3] / "data" / "recordings"


def write_sine(path: Path, frequency: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * frequency * np.arange(800) / SAMPLE_RATE), SAMPLE_RATE)


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """Speech Commands in its official layout: two words of three speakers."""
    root = tmp_path / "SpeechCommands" / "speech_commands_v0.02"
    for i, speaker in enumerate(("aaaa0001", "bbbb0002", "cccc0003")):
        write_sine(root / "left" / f"{speaker}_nohash_0.wav", 300 + 50 * i)
        write_sine(root / "right" / f"{speaker}_nohash_1.wav", 500 + 50 * i)
    write_sine(root / "_background_noise_" / "tap.wav", 100)
    for name, speaker in (("validation", "bbbb0002"), ("testing", "cccc0003")):
        (root / f"{name}_list.txt").write_text(f"left/{speaker}_nohash_0.wav\nright/{speaker}_nohash_1.wav\n")
    return tmp_path


@pytest.fixture
def libri(tmp_path: Path) -> Path:
    """LibriSpeech in its official layout: one part, two speakers."""
    for speaker, chapter in (("61", "70968"), ("121", "121726")):
        chapter_folder = tmp_path / "LibriSpeech" / "test-clean" / speaker / chapter
        names = [f"{speaker}-{chapter}-{i:04d}" for i in range(2)]
        for name in names:
            write_sine(chapter_folder / f"{name}.flac", 440)
        lines = [f"{name} HE BEGAN {i}\n" for i, name in enumerate(names)]
        (chapter_folder / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    return tmp_path


def test_speech_commands_follow_the_official_lists(commands: Path) -> None:
    clips = {split: speech_commands(commands, split) for split in SPLITS}
    assert {split: {c.speaker for c in cs} for split, cs in clips.items()} == {
        "train": {"aaaa0001"},
        "validation": {"bbbb0002"},
        "test": {"cccc0003"},
    }
    assert [(c.id, c.transcript) for c in clips["test"]] == [
        ("left/cccc0003_nohash_0", "left"),
        ("right/cccc0003_nohash_1", "right"),
    ]
    assert len({c.path for cs in clips.values() for c in cs}) == 6, "no clip in two splits, no background noise"
    assert clips["train"] == speech_commands(commands, "train")
    assert all(c.waveform().shape == (800,) and c.waveform().dtype == np.float32 for cs in clips.values() for c in cs)


def test_librispeech_comes_with_its_transcripts(libri: Path) -> None:
    clips = librispeech(libri, "test-clean")
    assert [c.id for c in clips] == ["121-121726-0000", "121-121726-0001", "61-70968-0000", "61-70968-0001"]
    assert [c.transcript for c in clips] == ["HE BEGAN 0", "HE BEGAN 1"] * 2
    assert [c.speaker for c in clips] == ["121", "121", "61", "61"]
    assert all(c.waveform().shape == (800,) for c in clips)


def test_unknown_splits_and_parts_are_named(commands: Path, libri: Path) -> None:
    with pytest.raises(ValueError, match="unknown split 'testing'; the nearest of .* is 'test'"):
        speech_commands(commands, "testing")
    with pytest.raises(ValueError, match=r"part must be one of .*'test-clean'.*: got 'test'"):
        librispeech(libri, "test")


def test_wrong_folders_are_named(tmp_path: Path, libri: Path) -> None:
    with pytest.raises(SourceError, match=r"nowhere: no such folder: expected SpeechCommands/speech_commands_v0\.02/"):
        speech_commands(tmp_path / "nowhere", "train")
    with pytest.raises(SourceError, match="nowhere: no such folder: expected LibriSpeech/test-clean/"):
        librispeech(tmp_path / "nowhere", "test-clean")
    (tmp_path / "other").mkdir()
    with pytest.raises(SourceError, match="other: expected SpeechCommands/speech_commands"):
        speech_commands(tmp_path / "other", "train")
    with pytest.raises(SourceError, match="expected LibriSpeech/dev-clean/"):
        librispeech(libri, "dev-clean")
    (tmp_path / "LibriSpeech" / "dev-clean").mkdir()
    with pytest.raises(SourceError, match="no recordings there: expected LibriSpeech/dev-clean/"):
        librispeech(libri, "dev-clean")


@pytest.mark.parametrize("split", SPLITS)
def test_missing_and_broken_lists_are_named(commands: Path, split: str) -> None:
    root = commands / "SpeechCommands" / "speech_commands_v0.02"
    for name in ("validation_list.txt", "testing_list.txt"):
        (root / name).write_text("left/who.wav\n")
    if split != "train":
        with pytest.raises(SourceError, match="expected SpeechCommands/.*_nohash_"):
            speech_commands(commands, split)
    for name in ("validation_list.txt", "testing_list.txt"):
        (root / name).unlink()
    with pytest.raises(SourceError, match=r"_list\.txt'\)"):
        speech_commands(commands, split)


def test_missing_and_broken_transcripts_are_named(libri: Path) -> None:
    path = libri / "LibriSpeech" / "test-clean" / "61" / "70968" / "61-70968.trans.txt"
    for broken in ("61-70968-0000 HE BEGAN\n", "61-70968-0000\n", ""):
        path.write_text(broken)
        with pytest.raises(SourceError, match=r"trans\.txt and the FLAC files in it \("):
            librispeech(libri, "test-clean")
    path.unlink()
    with pytest.raises(SourceError, match=r"61-70968\.trans\.txt'\)"):
        librispeech(libri, "test-clean")


def test_a_clip_whose_file_is_missing_names_it(commands: Path) -> None:
    clip = speech_commands(commands, "test")[0]
    clip.path.unlink()
    with pytest.raises(AudioError, match=r"cccc0003_nohash_0\.wav: no such audio file"):
        clip.waveform()


def test_the_vendored_recordings_load() -> None:
    clips = human_recordings(RECORDINGS)
    assert len(clips) >= 5 and len({c.id for c in clips}) == len(clips)
    for clip in clips:
        assert clip.transcript.strip() and clip.speaker in ("man", "woman")
        sound = clip.waveform()
        assert 1.0 < len(sound) / SAMPLE_RATE < 10.0
        assert 0.1 < np.abs(sound).max() <= 1.0


def test_the_vendored_recordings_are_listed_and_small() -> None:
    entries = json.loads((RECORDINGS / "recordings.json").read_text(encoding="utf-8"))["recordings"]
    listed = {e["file"] for e in entries}
    files = {f.name: f.stat().st_size for f in RECORDINGS.iterdir()}
    assert listed == {f for f in files if f.endswith(".flac")}
    assert max(files.values()) < 1_000_000 and sum(files.values()) < 2_000_000
    for e in entries:
        assert e["origin"] and e["licence"]
        assert (RECORDINGS / re.findall(r"\(([\w.-]+)\)", e["licence"])[0]).exists()


def test_recordings_lie_under_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_LAB_ROOT", str(tmp_path))
    with pytest.raises(SourceError, match=r"recordings\.json: no such file"):
        human_recordings()
    folder = tmp_path / "data" / "recordings"
    write_sine(folder / "a.flac", 440)
    entry = {"file": "a.flac", "transcript": "ah", "speaker": "woman"}
    (folder / "recordings.json").write_text(json.dumps({"recordings": [entry]}))
    assert human_recordings() == [Recording("a", folder / "a.flac", "ah", "woman")]
    for broken in ([entry], {"recordings": [{"file": "a.flac"}]}, {"recordings": 3}):
        (folder / "recordings.json").write_text(json.dumps(broken))
        with pytest.raises(SourceError, match=r"recordings\.json: expected a list 'recordings'"):
            human_recordings()
