"""The data of models with many heads: how often each task comes, and that a loader goes on where it stopped."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import MultitaskConfig, with_changes
from omni_lab.worlds.datamodules import MultitaskDataModule
from omni_lab.worlds.tasks import TaskBatch

TASKS = [*get_profile("smoke").multitask.batch_sizes]
MUTE = ["find", "answer", "restore", "translate"]  # nothing is spoken for them beforehand
COUNTS = {"describe": 40, "find": 10, "answer": 40, "restore": 20, "translate": 60, "transcribe": 8, "speak": 2}


def config(**changes: object) -> MultitaskConfig:
    few = {"train": COUNTS, "validation": dict.fromkeys(TASKS, 5), "test": dict.fromkeys(TASKS, 3)}
    small = {"examples": few, "batch_sizes": dict.fromkeys(TASKS, 2), "batches": 6, "sentences": 10, "max_length": 100}
    return with_changes(get_profile("smoke").multitask, **(small | changes))


def module(
    root: Path, tasks: list[str] | None = None, *, seed: int = 0, workers: int = 0, **changes: object
) -> MultitaskDataModule:
    return MultitaskDataModule(config(**changes), root=root, seed=seed, tasks=tasks, workers=workers)


def same(one: TaskBatch, other: TaskBatch) -> bool:
    pictures = [batch.inputs[Modality.IMAGE].values for batch in (one, other) if Modality.IMAGE in batch.inputs]
    alike = len(pictures) != 1 and (not pictures or torch.equal(*pictures))
    return alike and [*one.batch.ids] == [*other.batch.ids] and one.references == other.references


@pytest.mark.parametrize("temperature", [1.0, 2.0, 8.0, 1e6])
def test_the_shares_of_all_tasks_are_one(tmp_path: Path, temperature: float) -> None:
    mix = module(tmp_path, temperature=temperature).mix
    assert [*mix] == TASKS and sum(mix.values()) == pytest.approx(1)
    assert mix["translate"] / mix["speak"] == pytest.approx(30 ** (1 / temperature))


def test_heat_evens_the_tasks_out(tmp_path: Path) -> None:
    cold, warm, hot = (module(tmp_path, temperature=t).mix for t in (1.0, 4.0, 1e6))
    assert cold == pytest.approx({task: count / 180 for task, count in COUNTS.items()})
    assert hot == pytest.approx(dict.fromkeys(TASKS, 1 / 7), abs=1e-4)
    assert cold["speak"] < warm["speak"] < hot["speak"] and cold["translate"] > warm["translate"] > hot["translate"]


def test_one_task_alone_has_as_many_batches_as_among_all(tmp_path: Path) -> None:
    assert module(tmp_path, batches=180, temperature=1.0).batches == 180
    for task, count in COUNTS.items():
        assert module(tmp_path, [task], batches=180, temperature=1.0).batches == count
    assert module(tmp_path, ["find", "translate"], batches=90, temperature=1.0).batches == 35
    assert module(tmp_path, ["speak"], batches=9, temperature=1.0).batches == 1, "one, at least"


def test_training_batches_are_of_the_tasks_that_are_wanted(tmp_path: Path) -> None:
    data = module(tmp_path, MUTE, batches=120, temperature=1.0)
    loader = data.train_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader) == data.batches == round(120 * 130 / 180)
    assert all(isinstance(batch, TaskBatch) and len(batch) == 2 for batch in batches)
    found = Counter(batch.task for batch in batches)
    assert {*found} == {*MUTE} and found["translate"] > found["find"] and found["answer"] > found["find"]
    assert not any(tmp_path.iterdir()), "nothing is spoken that nobody hears"


def test_all_tasks_are_served(tmp_path: Path) -> None:
    data = module(tmp_path, batches=1)
    data.prepare_data()
    assert len(list(tmp_path.glob("utterances-*"))) == 4, "heard and spoken, to be trained on and to be validated"
    batches = list(data.val_dataloader())
    assert list(dict.fromkeys(batch.task for batch in batches)) == TASKS
    expected = [f"validation-{task}-{k}" for task in TASKS for k in range(5)]
    assert [name for batch in batches for name in batch.batch.ids] == expected, "every example, once"
    again = list(data.val_dataloader())
    assert all(same(one, two) for one, two in zip(batches, again, strict=True)), "in every epoch the same"


def test_each_epoch_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    loader = module(tmp_path, MUTE).train_dataloader()
    first = list(loader)
    loader.batch_sampler.set_epoch(1)
    second = list(loader)
    assert not any(same(one, two) for one in first for two in second)
    long = list(module(tmp_path, MUTE, batches=12).train_dataloader())
    assert len(first) < len(long) <= len(first) + len(second)
    assert all(same(one, two) for one, two in zip(long, first + second, strict=False))


@pytest.mark.parametrize(("seed", "workers"), [(0, 0), (0, 1), (1, 0)])
def test_another_loader_goes_on_in_the_middle(tmp_path: Path, seed: int, workers: int) -> None:
    straight = list(module(tmp_path, MUTE).train_dataloader())
    stopped = module(tmp_path, MUTE, seed=seed, workers=workers).train_dataloader()
    batches = iter(stopped)
    begun = [next(batches) for _ in range(2)]
    resumed = module(tmp_path, MUTE, seed=seed, workers=workers).train_dataloader()
    resumed.load_state_dict(stopped.state_dict())
    whole = [*begun, *resumed]
    assert len(whole) == len(straight) > 2
    assert [same(one, two) for one, two in zip(whole, straight, strict=True)] == [seed == 0] * len(whole)
    assert len(list(resumed)) == len(straight), "the next epoch is whole again"


def test_words_are_those_of_the_training_split(tmp_path: Path) -> None:
    data = module(tmp_path, MUTE)
    assert data.tokenizer.max_length == 100
    assert data.dataset("test").tokenizer is data.tokenizer and data.dataset("test") is data.dataset("test")
    other = module(tmp_path, MUTE)
    assert other.tokenizer.tokenizer.to_str() == data.tokenizer.tokenizer.to_str()
    assert module(tmp_path, MUTE, seed=1).tokenizer.tokenizer.to_str() != data.tokenizer.tokenizer.to_str()


def test_an_unknown_task_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks must be of \['describe', .*'speak'\]: got \['sing'\]"):
        module(tmp_path, ["find", "sing"])
