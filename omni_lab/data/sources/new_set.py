"""Makes a set of one's own from folders of media and a CSV file of questions, after reading every file once."""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from omni_lab.batch import Modality
from omni_lab.data.sources.base import SPLITS, SourceError
from omni_lab.data.sources.own_set import QUESTIONS, SETTINGS, OwnSet, OwnSetConfig, sets_folder
from omni_lab.utils.progress import track_progress

SET_NAME = re.compile(r"[a-z][a-z0-9_]*")


def create_own_set(
    name: str,
    questions: Path,
    *,
    root: Path | None = None,
    replace: bool = False,
    check: Callable[[OwnSet], Any] = lambda own: None,
    **settings: Any,
) -> OwnSet:
    """Writes a folder of that name below `root` (default: `data/sets/`) and returns the set.

    questions: a CSV file, see `read_questions`. check: may refuse the set, too. settings: fields of `OwnSetConfig`;
    folders as paths.
    Raises SourceError for a name that is taken (unless `replace`) or is none, a folder that does not exist, and
    whatever is wrong with the questions or with a file that they name; nothing is written then.
    """
    if not SET_NAME.fullmatch(name):
        raise SourceError(f"the name of a set must be lower case letters, digits and underscores: got {name!r}")
    folder = (root or sets_folder()) / name
    if folder.exists() and not replace:
        raise SourceError(f"{folder}: there is a set of this name: choose another, or say --replace")
    folders = {key: settings[key] for key in ("images", "audio", "video") if settings.get(key)}
    if not folders:
        raise SourceError("a set needs a folder of images, audio or video: got none")
    for key, path in folders.items():
        if not Path(path).is_dir():
            raise SourceError(f"{key}: {path}: no such folder")
    resolved = {key: str(Path(path).resolve()) for key, path in folders.items()}
    config = dataclasses.asdict(OwnSetConfig(**settings | resolved))
    part = folder.with_name(f".{name}.part") / name  # the last name is that of the set
    shutil.rmtree(part.parent, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        try:
            shutil.copyfile(questions, part / QUESTIONS)
        except OSError as error:
            raise SourceError(f"{questions}: cannot be read ({error})") from error
        (part / SETTINGS).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        _read_everything(OwnSet(part))
        check(OwnSet(part))
        shutil.rmtree(folder, ignore_errors=True)
        part.rename(folder)
    except SourceError as error:
        raise SourceError(str(error).replace(str(part / QUESTIONS), str(questions))) from error
    finally:
        shutil.rmtree(part.parent, ignore_errors=True)
    return OwnSet(folder)


def _read_everything(own: OwnSet) -> None:
    """Raises SourceError for the first file that cannot be read."""
    needed: dict[Modality, dict[int, None]] = defaultdict(dict)
    for questions in own.questions().values():
        for question in questions:
            for modality, key in question.media_keys.items():
                needed[modality][key] = None
    for modality, keys in needed.items():
        for _ in track_progress(own.media(modality, [*keys]), f"reading {modality}", total=len(keys), unit="file"):
            pass


def describe_own_set(own: OwnSet) -> list[str]:
    """What the set holds, and what to expect of it, in lines."""
    questions = own.questions()
    lines = [f"{own.name}: " + ", ".join(f"{len(questions[split])} questions to {split}" for split in SPLITS)]
    for modality in own.modalities[1:]:
        files = {q.media_keys[modality] for part in questions.values() for q in part if modality in q.media_keys}
        lines.append(f"{len(files)} files of {modality}")
    counts = Counter(answer for q in questions["train"] for answer in q.scores)
    common = ", ".join(f"{answer!r} ({count})" for answer, count in counts.most_common(5))
    lines.append(f"{len(own.answers())} answers; the commonest to train: {common}")
    unseen = sorted({answer for s in SPLITS[1:] for q in questions[s] for answer in q.scores} - counts.keys())
    if unseen:
        lines.append(
            f"warning: {len(unseen)} answers occur in no training question and cannot be learned: {unseen[:5]}"
        )
    scenes = len({q.scene for q in questions["train"]})
    if scenes < 100:
        lines.append(f"warning: {scenes} scenes to train are few: expect little, and wide intervals")
    return lines
