"""Training several heads together, each batch for those that its task asks for."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from omni_lab.batch import Modality
from omni_lab.config.profiles import get_profile
from omni_lab.config.schema import DataConfig, MultitaskConfig, Profile, TrainingConfig, with_changes
from omni_lab.lightning_modules.multitask import MIN_LOG_VARIANCE, LitMultitask
from omni_lab.model import OmniModel
from omni_lab.training.checkpoint import CheckpointError, load_model
from omni_lab.training.fit import load_or_train
from omni_lab.training.recipes import MultitaskRecipe, TrainedModel, get_recipe
from omni_lab.worlds.datamodules import MultitaskDataModule
from omni_lab.worlds.tasks import RULES_VERSION, TASKS, TaskBatch
from tests.training.test_emoji_world_training import assert_a_stop_changes_nothing, fit

SMOKE = get_profile("smoke")
FEW = dict.fromkeys(TASKS, 4)
TINY_TRAINING = TrainingConfig(epochs=2, learning_rate=3e-3, horizontal_flip=False, checkpoint_every=1)
TINY_HEADS: MultitaskConfig = with_changes(
    SMOKE.multitask,
    training=TINY_TRAINING,
    examples={"train": dict.fromkeys(TASKS, 16), "validation": FEW, "test": dict.fromkeys(TASKS, 10)},
    batch_sizes=dict.fromkeys(TASKS, 4),
    batches=7,
    dim=16,
    text_depth=1,
    detection_depth=1,
    widths=(4, 4, 8),
    sentences=10,
)
TINY: Profile = with_changes(SMOKE, name="tiny", multitask=TINY_HEADS)
ASKED = {
    "describe": {"text"},
    "find": {"detection"},
    "answer": {"answer", "text"},
    "restore": {"restoration"},
    "translate": {"text"},
    "transcribe": {"text"},
    "speak": {"tts"},
}


def tiny_recipe(name: str = "heads", **changes: Any) -> MultitaskRecipe:
    """Batches are sampled in this process."""
    recipe = get_recipe(name, TINY)
    assert isinstance(recipe, MultitaskRecipe)
    return replace(recipe, data=DataConfig(), **changes)


class Made(NamedTuple):
    recipe: MultitaskRecipe
    data: MultitaskDataModule
    trained: TrainedModel


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all tests here: what is spoken is spoken once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("heads")
        patch.setenv("OMNI_LAB_ROOT", str(folder))
        yield folder


@pytest.fixture(scope="module")
def made(root: Path) -> Made:
    recipe = tiny_recipe()
    return Made(recipe, recipe.data_module(), load_or_train(recipe))


@pytest.fixture
def model(made: Made) -> OmniModel:
    """Untrained."""
    return made.recipe.build_model(made.data)


def a_batch(made: Made, task: str) -> TaskBatch:
    return made.data.dataset("train").batch(task, range(4))


def touched(module: torch.nn.Module) -> bool:
    """Whether a gradient has reached any of its weights."""
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_a_loss_reaches_the_heads_that_it_asks_for_and_no_others(made: Made, model: OmniModel, task: str) -> None:
    module = made.recipe.lightning_module(model, made.data)
    given = a_batch(made, task)
    assert {*module.head_requests(given)} == ASKED[task]
    loss = module.loss(given)
    assert loss.ndim == 0 and loss.isfinite() and loss > 0
    loss.backward()
    assert {name for name, head in model.heads.items() if touched(head)} == ASKED[task]
    assert touched(model.heads["text"].ctc_proj) is (task == "transcribe")
    if task != "restore":  # what the pixels head paints with is zero at first
        for modality, encoder in model.encoders.items():
            assert touched(encoder) is (Modality(modality) in given.inputs), modality
        assert touched(model.context_encoder) is True


def test_transcription_weighs_decoder_and_ctc_losses_equally(made: Made, model: OmniModel) -> None:
    module = made.recipe.lightning_module(model, made.data).eval()
    given = a_batch(made, "transcribe")
    output = model.eval()(given.batch, heads=module.head_requests(given))
    text, target = model.heads["text"], given.targets["target"]
    decoder, ctc = text.loss(output.head_outputs["text"], target), text.ctc_loss(output.context, target)
    assert torch.allclose(module.loss(given), (decoder + ctc) / 2, rtol=1e-5)


@pytest.mark.parametrize("damage", ["hole", "noise"])
def test_what_is_restored_counts_where_something_was_missing(made: Made, model: OmniModel, damage: str) -> None:
    module = made.recipe.lightning_module(model, made.data).train()
    given = made.data.dataset("train").batch("restore", range(4), damage=damage)
    with torch.no_grad():
        model.heads["restoration"].paint.bias.zero_()  # what is given comes back
    targets = given.targets
    missing = ~targets["kept"] if damage == "hole" else torch.ones(4, 64, 64, dtype=torch.bool)
    left = (
        torch.full_like(targets["picture"], 0.5, dtype=torch.float32) if damage == "hole" else targets["damaged"] / 255
    )
    expected = (left - targets["picture"] / 255).square().permute(0, 2, 3, 1)[missing].mean()
    assert torch.allclose(module.loss(given), 10 * expected, rtol=1e-4)


def test_the_uncertainty_of_each_task_is_learned(made: Made, model: OmniModel) -> None:
    module = made.recipe.lightning_module(model, made.data).eval()
    module.log = lambda *args, **options: None
    assert module.uncertainty.shape == (7,) and not module.uncertainty.any(), "at first, all count alike"
    given, at = a_batch(made, "find"), module.tasks.index("find")
    for s, held in ((0.0, 0.0), (0.7, 0.7), (-1.5, -1.5), (-9.0, MIN_LOG_VARIANCE)):
        with torch.no_grad():
            module.uncertainty[at] = s
        module.zero_grad()
        loss = float(module.loss(given).detach())
        weighed = module.training_step(given, 0)
        assert weighed.item() == pytest.approx(math.exp(-held) * loss + held, rel=1e-5)
        weighed.backward()
        slope = module.uncertainty.grad.clone()
        assert slope[at] == pytest.approx(0.0 if s < MIN_LOG_VARIANCE else 1 - math.exp(-s) * loss, rel=1e-4)
        slope[at] = 0
        assert not slope.any(), "no other task's"


@pytest.mark.parametrize("name", ["heads_fixed", "heads_find"])
def test_without_uncertainty_a_loss_counts_as_it_is(made: Made, model: OmniModel, name: str) -> None:
    recipe = tiny_recipe(name)
    module = recipe.lightning_module(model, recipe.data_module()).eval()
    module.log = lambda *args, **options: None
    assert {n.split(".")[0] for n, _ in module.named_parameters()} == {"model"}
    given = a_batch(made, "find")
    assert torch.equal(module.training_step(given, 0), module.loss(given))
    assert "uncertainty" in dict(made.recipe.lightning_module(model, made.data).named_parameters())


def test_a_training_leaves_a_model_and_its_history(made: Made) -> None:
    history = made.trained.metadata["history"]
    assert len(history) == 2 and made.trained.metadata["command"] == "omni-lab train heads --profile tiny --seed 0"
    assert all(math.isfinite(row[column]) for row in history for column in ("train loss", *TASKS))
    assert not made.trained.model.training
    folder = made.recipe.work_folder(made.data)
    assert (folder / "model.safetensors").exists() and not (folder / "last.ckpt").exists()
    logged = next(folder.glob("logs/csv/*/metrics.csv")).read_text()
    assert "uncertainty/" in logged and "validation/restore" in logged


def test_what_was_trained_is_found_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LitMultitask, "training_step", lambda *args: pytest.fail("trained again"))
    again = load_or_train(made.recipe)
    assert again.origin.startswith("trained here earlier")
    first, trained = made.recipe.build_model(made.data).state_dict(), made.trained.model.state_dict()
    assert all(torch.equal(weights, trained[name]) for name, weights in again.model.state_dict().items())
    moved = {
        name.split(".")[1]
        for name in trained
        if name.startswith("heads.") and not torch.equal(trained[name], first[name])
    }
    assert moved == {*made.trained.model.heads}
    other = replace(made.recipe, multitask=with_changes(TINY_HEADS, batches=8))
    assert other.work_folder(made.data) != made.recipe.work_folder(made.data)
    tested = with_changes(TINY_HEADS, examples=TINY_HEADS.examples | {"test": dict.fromkeys(TASKS, 99)})
    assert replace(made.recipe, multitask=tested).work_folder(made.data) == made.recipe.work_folder(made.data)


@pytest.mark.parametrize("stop_after", [3, 9])
def test_a_training_stopped_and_resumed_ends_with_the_same_bits(root: Path, tmp_path: Path, stop_after: int) -> None:
    recipe = tiny_recipe()
    assert recipe.data_module().batches == 7
    assert_a_stop_changes_nothing(recipe, tmp_path, stop_after=stop_after)


def test_a_task_alone_trains_its_own_heads_alone(root: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe("heads_find")
    data = recipe.data_module()
    assert data.names == ["find"] and data.batches == 1
    recipe = replace(recipe, multitask=with_changes(TINY_HEADS, batches=28))
    data = recipe.data_module()
    assert [batch.task for batch in data.train_dataloader()] == ["find"] * 4, "as many as among all tasks"
    assert [*recipe.lightning_module(recipe.build_model(data), data).columns] == ["train loss", "find"]
    before, after = recipe.build_model(data).state_dict(), fit(recipe, tmp_path)
    moved = {".".join(name.split(".")[:2]) for name in after if not torch.equal(before[name], after[name])}
    assert {name for name in moved if name.startswith("heads.")} == {"heads.detection"}
    assert "encoders.image" in moved and not moved & {"encoders.text", "encoders.audio"}


def test_it_learns_to_describe_a_few_pictures(made: Made, model: OmniModel) -> None:
    module = made.recipe.lightning_module(model, made.data)
    given = a_batch(made, "describe")
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    first = module.eval().loss(given).item()
    module.train()
    for _ in range(40):
        loss = module.loss(given)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert module.eval().loss(given).item() < 0.4 * first


def test_recipes_are_known_by_name(root: Path) -> None:
    whole, fixed = tiny_recipe(), tiny_recipe("heads_fixed")
    assert (
        whole.multitask.uncertainty_weighting
        and not fixed.multitask.uncertainty_weighting
        and whole.task is fixed.task is None
    )
    assert [tiny_recipe(f"heads_{task}").task for task in TASKS] == [*TASKS]
    assert get_recipe("heads", TINY).data.num_workers == 1, "batches are sampled in a process of their own"
    made = [whole, fixed, tiny_recipe("heads_find"), tiny_recipe("heads_speak"), replace(whole, seed=1)]
    folders = {recipe.work_folder(recipe.data_module()) for recipe in made}
    assert len(folders) == 5 and all(str(folder).startswith(str(root)) for folder in folders)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("omni_lab.training.recipes.RULES_VERSION", RULES_VERSION + 1)
        assert whole.work_folder(whole.data_module()) not in folders, "with other sampling rules, it is another model"
    with pytest.raises(ValueError, match="unknown recipe 'heads_sing'; the nearest of .* is 'heads_"):
        get_recipe("heads_sing", TINY)


def test_a_checkpoint_of_other_heads_is_not_loaded(made: Made) -> None:
    folder = made.recipe.work_folder(made.data)
    other = replace(made.recipe, multitask=with_changes(TINY_HEADS, temperature=2.0))
    with pytest.raises(CheckpointError, match=r"heads.temperature: has 16.0, expected 2.0"):
        load_model(folder, made.recipe.build_model(made.data), identity=other.identity(made.data))
