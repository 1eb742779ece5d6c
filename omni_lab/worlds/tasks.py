"""Batches of one task each, for training and evaluating the multitask model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from omni_lab.batch import Modality, OmniBatch
from omni_lab.data.collate import Sample, collate
from omni_lab.worlds.task_examples import DAMAGE_CYCLE, DAMAGES, HINTS, TASKS, ExampleSampler, TaskExample

RULES_VERSION = 1  # raise it when the same example of a split is sampled differently: old models are then trained anew
_DAMAGE: dict[str, Sequence[str]] = {"damage": DAMAGES}
_OPTIONS = {"restore": {**_DAMAGE, "hint": HINTS}, "describe": _DAMAGE, "find": _DAMAGE}


@dataclass(frozen=True)
class TaskBatch:
    """A batch of one task.

    batch: inputs; families are the kinds of the examples. Its targets are, as the task has them, "prompt" and "target"
        (token ids), "answer_scores", "labels" [B, 4] (-1 where there is nothing), "boxes" [B, 4, 4] as fractions of the
        sides, "picture" (the original), "damaged", "kept" (True outside the hole), "ids" (letters), "voice",
        "durations" (frames) and "wave" [B, S].
    references: all correct texts of each example.
    """

    task: str
    batch: OmniBatch
    references: Sequence[Sequence[str]] = ()

    def __len__(self) -> int:
        return len(self.batch)

    @property
    def inputs(self) -> Mapping[Modality, Any]:
        return self.batch.inputs

    @property
    def targets(self) -> Mapping[str, Tensor]:
        return self.batch.targets

    @property
    def kinds(self) -> Sequence[str]:
        return self.batch.families

    def to(self, device: torch.device | str, non_blocking: bool = False) -> TaskBatch:
        return replace(self, batch=self.batch.to(device, non_blocking=non_blocking))


@dataclass(eq=False, kw_only=True)
class TaskDataset(ExampleSampler, Dataset[TaskBatch]):
    """Training batches hold random examples of a random task; other splits go through the examples of each task."""

    sizes: Mapping[str, int]  # of a batch, per task
    mix: Mapping[str, float]  # relative frequency of each task in training; a task that it lacks is left out

    def __post_init__(self) -> None:
        unknown = [task for task in self.mix if task not in TASKS]
        if unknown or not self.mix:
            raise ValueError(f"tasks must be of {TASKS}: got {[*self.mix]}")
        super().__post_init__()
        self.batches = [(t, k) for t in self.mix for k in range(0, self.examples[t], self.sizes[t])]

    def prepare(self) -> None:
        """Synthesizes the speech of the tasks that need it, if it is not cached."""
        for task, utterances in (("transcribe", "transcription_utterances"), ("speak", "tts_utterances")):
            if task in self.mix:
                getattr(self, utterances)

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> TaskBatch:
        if self.split != "train":
            task, first = self.batches[i]
            return self.batch(task, range(first, min(first + self.sizes[task], self.examples[task])))
        rng = self.sentences.rng(self.seed, i)
        weights = np.array([*self.mix.values()])
        task = str(rng.choice([*self.mix], p=weights / weights.sum()))
        return self.batch(task, rng.integers(self.examples[task], size=self.sizes[task]).tolist(), take=i)

    def batch(self, task: str, examples: Sequence[int], *, take: int = 0, **options: str) -> TaskBatch:
        """The examples of these numbers.

        take: decides the noise of `transcribe`.
        damage: for `restore`, `describe` and `find`; by default `restore` takes `DAMAGE_CYCLE` in turn.
        hint: for `restore`; by default sampled.
        Raises ValueError for an unknown task, and for options that the task does not have.
        """
        if task not in TASKS:
            raise ValueError(f"task must be of {TASKS}: got {task!r}")
        known = _OPTIONS.get(task, {})
        for name, value in options.items():
            if value not in known.get(name, ()):
                raise ValueError(f"{task} takes the options {known}: got {name}={value!r}")
        if task == "restore":
            turn = take if self.split == "train" else examples[0] // self.sizes[task]
            options = {"damage": DAMAGE_CYCLE[turn % len(DAMAGE_CYCLE)], **options}
        make: Callable[..., TaskExample] = getattr(self, f"_{task}")
        takes = [take] if task == "transcribe" else []
        made = [make(k, self._rng(task, k, *takes), **options) for k in examples]
        names = [f"{self.split}-{task}-{k}" for k in examples]
        batch = collate([Sample(name, task, e.kind, e.inputs) for name, e in zip(names, made, strict=True)])
        targets = {name: _stack(name, [e.targets[name] for e in made]) for name in made[0].targets}
        texts = [e.text for e in made if e.text is not None]
        if texts:
            control_tokens, prefixes, rest = zip(*texts, strict=True)
            targets["prompt"] = self.tokenizer.encode_prompts(control_tokens, prefixes)
            targets["target"] = self.tokenizer.encode_targets(rest)
        return TaskBatch(task, replace(batch, targets=targets), [e.references for e in made] if texts else ())


def _stack(name: str, values: Sequence[Tensor]) -> Tensor:
    """Stacks the values, padded to one length: letters with -1, all else with 0."""
    if values[0].ndim == 0:
        return torch.stack([*values])
    return torch.nn.utils.rnn.pad_sequence([*values], batch_first=True, padding_value=-1 if name == "ids" else 0)
