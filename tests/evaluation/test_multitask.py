"""Predictions of the task heads, by an untrained model or by one that returns the targets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from omni_lab.batch import Modality, OmniBatch
from omni_lab.data.collate import Sample, collate
from omni_lab.data.tokenizer import DecoderTokenizer
from omni_lab.evaluation.multitask import (
    TextPredictions,
    answer_hits,
    detect,
    generate_texts,
    iter_examples,
    nearest_captions,
    posterior_mean_fill,
    restore_images,
    senses,
    synthesize_speech,
    task_score,
    without_images,
)
from omni_lab.heads.text import GenerationConfig
from omni_lab.heads.tts import GriffinLimVocoder
from omni_lab.model import OmniModel
from omni_lab.worlds.scene import valid_captions
from omni_lab.worlds.tasks import TASKS, TaskBatch, TaskDataset
from tests.lightning_modules.test_multitask import tiny_recipe

IMAGE = Modality.IMAGE


class Setting(NamedTuple):
    model: OmniModel
    tasks: TaskDataset
    codec: DecoderTokenizer


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    """An untrained model, and ten examples of each task in batches of four."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMNI_LAB_ROOT", str(tmp_path_factory.mktemp("heads")))
        recipe = tiny_recipe()
        data = recipe.data_module()
        model: Any = recipe.build_model(data).eval()
        torch.manual_seed(0)
        nn.init.normal_(model.heads["restoration"].paint.weight, std=0.1)  # else it paints nothing at all
        yield Setting(model, data.dataset("test"), data.tokenizer)


class Oracle(OmniModel):
    """Generates the target texts, in order."""

    def __init__(self, batches: list[TaskBatch]) -> None:
        nn.Module.__init__(self)
        self.right = iter([batch.targets["target"] for batch in batches])

    def forward(self, batch: OmniBatch, *, heads: Any) -> Any:  # type: ignore[override]
        return SimpleNamespace(head_outputs={"text": SimpleNamespace(sequences=next(self.right))})


class Change:
    """Reverses the images of a batch, and records the batches."""

    def __init__(self) -> None:
        self.seen: list[OmniBatch] = []

    def __call__(self, batch: OmniBatch) -> OmniBatch:
        self.seen.append(batch)
        return batch.with_entry_index(IMAGE, batch.inputs[IMAGE].entry_index.flip(0))


def test_examples_cover_all_once_and_in_order(setting: Setting) -> None:
    def found(task: str, count: int | None = None, **wanted: str) -> list[list[str]]:
        return [[*batch.batch.ids] for batch in iter_examples(setting.tasks, task, count, **wanted)]

    assert [len(ids) for ids in found("find")] == [4, 4, 2]
    assert [name for ids in found("find") for name in ids] == [f"test-find-{k}" for k in range(10)]
    assert found("find", 5) == [*found("find")[:1], ["test-find-4"]]
    assert found("find", 99) == found("find") and found("find", 0) == []
    with pytest.raises(ValueError, match="count must be 0 or more: got -1"):
        found("find", -1)
    for batch in iter_examples(setting.tasks, "restore", damage="noise", hint="written"):
        assert {*batch.kinds} == {"noise, written"}


@pytest.mark.parametrize("task", ["describe", "translate", "transcribe", "answer"])
def test_target_texts_match_exactly(setting: Setting, task: str) -> None:
    batches = list(iter_examples(setting.tasks, task))
    said = generate_texts(Oracle(batches), setting.codec, batches)
    assert len(said.predictions) == len(said.references) == len(said.kinds) == 10
    assert said.exact_match == [True] * 10
    assert said.kinds == [kind for batch in batches for kind in batch.kinds]
    others = generate_texts(Oracle(batches[::-1]), setting.codec, batches)
    assert not all(others.exact_match)


def test_references_are_normalised_as_the_tokenizer_decodes(setting: Setting) -> None:
    texts = ["你好，老师！", "How are you?", "３ Äpfel…"]
    given = next(iter_examples(setting.tasks, "translate", 3))
    targets = {**given.batch.targets, "target": setting.codec.encode_targets(texts)}
    given = replace(given, batch=replace(given.batch, targets=targets), references=[[t, "？"] for t in texts])
    said = generate_texts(Oracle([given]), setting.codec, [given])
    assert said.references == [["你好,老师!", "?"], ["how are you?", "?"], ["3 äpfel...", "?"]]
    assert said.exact_match == [True] * 3


def test_texts_are_selected_by_kind() -> None:
    texts = TextPredictions(["a", "b", "c"], [["a"], ["c", "b"], ["d"]], ["en", "zh", "en, begun"])
    assert texts.select("en") == TextPredictions(["a"], [["a"]], ["en"])
    assert texts.select("zh", "en, begun") == TextPredictions(["b", "c"], [["c", "b"], ["d"]], ["zh", "en, begun"])
    assert texts.select("hsk").predictions == [] == texts.select().predictions
    assert texts.exact_match == [True, True, False]


def test_senses_are_read_from_the_words() -> None:
    texts = TextPredictions(
        ["a mouse", "eine maus und ein frosch", "eine computermaus", "ein frosch", "a violin", "an accordion"],
        [["ein frosch"], ["eine maus"], ["eine maus"], ["eine computermaus"], ["a violin"], ["a violin"]],
        ["", *["en-de, ambiguous"] * 3, *["zh-en, ambiguous"] * 2],
    )
    ambiguous = texts.select("en-de, ambiguous", "zh-en, ambiguous")
    found = senses(ambiguous)
    assert [(sense.predicted, sense.reference) for sense in found] == [
        ("maus", "maus"),
        ("computermaus", "maus"),
        (None, "computermaus"),
        ("violin", "violin"),
        ("accordion", "violin"),
    ]
    assert len({sense.word for sense in found[:3]}) == len({sense.word for sense in found[3:]}) == 1
    assert found[0].word != found[3].word, "both senses are of one word"
    kinds = ["zh-en, ambiguous", "zh-de, ambiguous"]
    inside = TextPredictions(["a penguin", "ziegelstein"], [["a pen"], ["eine ziege"]], kinds)
    assert [sense[:2] for sense in senses(inside)] == [(None, "pen"), (None, "ziege")], "no part of another word"
    with pytest.raises(ValueError, match="no word of 'ein frosch' is a sense of an ambiguous word: en-de, plain"):
        senses(TextPredictions(["ein frosch"], [["ein frosch"]], ["en-de, plain"]))


def test_without_images_keeps_the_samples(setting: Setting) -> None:
    given = next(iter_examples(setting.tasks, "answer")).batch
    blind = without_images(given)
    assert blind.present[:, IMAGE.column].tolist() == [False] * 4
    assert torch.equal(blind.present[:, Modality.TEXT.column], given.present[:, Modality.TEXT.column])
    assert blind.ids == given.ids and given.present[:, IMAGE.column].all()
    alone = given.without(IMAGE)
    with torch.no_grad():
        said, expected = (setting.model(b, heads=["answer"]).head_outputs["answer"] for b in (blind, alone))
    assert torch.allclose(said, expected, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_a_score(setting: Setting, task: str) -> None:
    score = task_score(setting.model, setting.tasks, task)
    assert math.isfinite(score.value) and score.value >= 0 and score.metric
    assert score.higher_is_better is (task not in ("transcribe", "speak"))
    if task == "answer":
        assert score.value == pytest.approx(
            float(answer_hits(setting.model, iter_examples(setting.tasks, task)).float().mean())
        )


def test_given_predictions_are_scored(setting: Setting) -> None:
    holes = restore_images(setting.model, iter_examples(setting.tasks, "restore", damage="hole", hint="untold"))
    assert task_score(setting.model, setting.tasks, "restore", holes) == task_score(
        setting.model, setting.tasks, "restore"
    )
    right = torch.tensor([True, True, False, True])
    assert task_score(setting.model, setting.tasks, "answer", right).value == 0.75
    known = TextPredictions(["a b c d", "x", "a b c e"], [["a b c d"], ["y"], ["a b c d"]], ["en", "en, begun", "de"])
    said = task_score(setting.model, setting.tasks, "describe", known)
    assert said.value == pytest.approx(0.5, abs=0.01), "1 in English, 0 in German; what was begun does not count"


def test_an_untrained_model_generates_texts(setting: Setting) -> None:
    batches = list(iter_examples(setting.tasks, "describe"))
    decoding = GenerationConfig(max_new_tokens=5)
    said = generate_texts(setting.model, setting.codec, batches, decoding=decoding)
    assert len(said.predictions) == 10 and not any(said.exact_match)
    torch.manual_seed(7)
    assert generate_texts(setting.model, setting.codec, batches, decoding=decoding) == said
    change = Change()
    changed = [replace(batch, batch=change(batch.batch)) for batch in batches]
    blind = Change()
    assert (
        generate_texts(setting.model, setting.codec, batches, decoding=decoding, change=blind).predictions
        == generate_texts(setting.model, setting.codec, changed, decoding=decoding).predictions
    )
    assert [b.ids for b in blind.seen] == [b.batch.ids for b in batches]


def test_detections_come_with_targets(setting: Setting) -> None:
    batches = list(iter_examples(setting.tasks, "find"))
    found = detect(setting.model, batches)
    assert len(found.detections) == 10 and found.labels.shape == (10, 4) and found.boxes.shape == (10, 4, 4)
    assert torch.equal(found.labels, torch.cat([b.targets["labels"] for b in batches]))
    assert torch.equal(found.boxes, torch.cat([b.targets["boxes"] for b in batches]))
    for objects in found.detections:
        assert objects.boxes.shape == (8, 4) and (objects.scores.diff() <= 0).all()
        assert (objects.labels < 8).all(), "a thing, not nothing"
    alone = detect(setting.model, batches[1:2]).detections
    assert torch.allclose(alone[0].boxes, found.detections[4].boxes, atol=1e-5)


@pytest.mark.parametrize("damage", ["hole", "noise"])
def test_restored_images_come_with_originals(setting: Setting, damage: str) -> None:
    batches = list(iter_examples(setting.tasks, "restore", damage=damage))
    pictures = restore_images(setting.model, batches)
    assert pictures.restored.shape == pictures.original.shape == pictures.damaged.shape == (10, 3, 64, 64)
    whole = torch.cat([batch.targets["picture"] for batch in batches])
    assert torch.equal((255 * pictures.original).round().to(torch.uint8), whole)
    assert torch.equal(pictures.damaged, torch.cat([batch.targets["damaged"] for batch in batches]))
    assert (pictures.keep_mask is None) is (damage == "noise")
    assert (pictures.restored >= 0).all() and (pictures.restored <= 1).all()
    missing = torch.ones(10, 64, 64, dtype=torch.bool)
    if pictures.keep_mask is not None:
        missing = ~pictures.keep_mask
        assert torch.equal(*(p.permute(0, 2, 3, 1)[pictures.keep_mask] for p in (pictures.restored, pictures.original)))
    change = Change()
    other = restore_images(setting.model, batches, change=change)
    assert [b.ids for b in change.seen] == [b.batch.ids for b in batches]
    assert torch.equal(other.damaged, pictures.damaged), "the head is given the same"
    off = (other.restored - pictures.restored).abs().amax(1)
    assert off[missing].max() > 1e-5, "but remembers something else"
    assert not off[~missing].any()


def test_the_posterior_mean_has_the_lowest_expected_error(setting: Setting) -> None:
    """In squared error, under the chances themselves."""
    best = posterior_mean_fill(setting.tasks, 3)
    assert best.shape == (3, 3, 64, 64) and best.min() >= 0 and best.max() <= 1
    for k in range(3):
        pictures, chances = setting.tasks.inpainting_candidates(k)
        off = ((pictures.float() / 255 - best[k]).square().mean((1, 2, 3)) * chances).sum()
        likeliest = pictures[int(chances.argmax())].float() / 255
        for other in (likeliest, best[k] + 0.02, pictures.float().mean(0) / 255 * 0.98):
            assert off < ((pictures.float() / 255 - other).square().mean((1, 2, 3)) * chances).sum()


def test_answer_hits(setting: Setting) -> None:
    batches = list(iter_examples(setting.tasks, "answer"))
    scores = torch.cat([batch.targets["answer_scores"] for batch in batches])

    def said(changed: list[TaskBatch]) -> Tensor:
        with torch.no_grad():
            return torch.cat(
                [setting.model(b.batch, heads=["answer"]).head_outputs["answer"].argmax(1) for b in changed]
            )

    right = answer_hits(setting.model, batches)
    assert right.dtype == torch.bool and right.shape == (10,)
    assert torch.equal(right, said(batches) == scores.argmax(1))
    taught = [replace(b, batch=replace(b.batch, targets={"answer_scores": one_hot(b, setting)})) for b in batches]
    assert answer_hits(setting.model, taught).all() and not right.all()
    change = Change()
    turned = answer_hits(setting.model, batches, change=change)
    changed = [replace(b, batch=Change()(b.batch)) for b in batches]
    assert torch.equal(turned, said(changed) == scores.argmax(1)) and len(change.seen) == 3


def one_hot(batch: TaskBatch, setting: Setting) -> Tensor:
    """What the model says, as if it were right."""
    with torch.no_grad():
        logits = setting.model(batch.batch, heads=["answer"]).head_outputs["answer"]
    return nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()


def test_synthesized_and_reference_speech_of_the_same_texts(setting: Setting) -> None:
    tasks = setting.tasks
    said = synthesize_speech(setting.model, tasks, iter_examples(tasks, "speak"), vocoder=GriffinLimVocoder(n_iter=1))
    lines = tasks.tts_utterances.lines
    assert said.texts == [line.text for line in lines] and len(lines) == 10
    assert said.voices == [line.voice.variant for line in lines]
    for i, (ours, reference) in enumerate(zip(said.synthesized, said.reference, strict=True)):
        assert torch.equal(reference, torch.from_numpy(tasks.tts_utterances.waveform(i)))
        assert ours.ndim == 1 and len(ours) >= 160 * len(said.texts[i]) and len(ours) % 160 == 0
        assert ours.isfinite().all()


@pytest.mark.parametrize("language", ["en", "de", "zh"])
def test_the_nearest_image_is_the_image_itself(setting: Setting, language: str) -> None:
    gallery = [setting.tasks.caption_scene(k) for k in range(7)]
    samples = [Sample(str(k), "describe", f"{language}, begun", {IMAGE: shown}) for k, (_, shown) in enumerate(gallery)]
    asked = [TaskBatch("describe", collate(samples[:2])), TaskBatch("describe", collate(samples[2:]))]
    expected = [valid_captions(placed, language)[0].lower() for placed, _ in gallery]
    assert len({*expected}) > 4
    assert nearest_captions(setting.model, setting.tasks, 7, asked) == expected
    fewer = nearest_captions(setting.model, setting.tasks, 3, asked)
    assert fewer[:3] == expected[:3] and {*fewer} <= {*expected[:3]}


def test_gallery_scenes_match_the_examples(setting: Setting) -> None:
    for k, given in enumerate(setting.tasks.batch("describe", [k]) for k in range(6)):
        placed, shown = setting.tasks.caption_scene(k)
        language, *begun = given.kinds[0].split(", ")
        assert begun or list(given.references[0]) == valid_captions(placed, language)
        assert shown.shape == (3, 64, 64) and shown.dtype == torch.uint8
