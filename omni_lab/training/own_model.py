"""A model of a set of one's own: its recipe, its router, and what they reach on the test split."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import timm
import torch

from omni_lab.batch import ComputeLevel, Modality
from omni_lab.config.models import VisionConfig
from omni_lab.config.schema import DataConfig, Profile, TrainingConfig
from omni_lab.data.sources.base import SourceError
from omni_lab.data.sources.own_set import OwnSet
from omni_lab.evaluation.policies import PolicyEvaluator
from omni_lab.evaluation.predictions import majority_by_question, predict_without_each
from omni_lab.metrics.bootstrap import Estimate, proportion
from omni_lab.metrics.pareto import paired_difference, paired_ratio
from omni_lab.routing.route import Route
from omni_lab.routing.router import Router
from omni_lab.training.recipes import Recipe, TrainedModel, get_recipe
from omni_lab.training.router_recipes import RouterRecipe, get_router_recipe

SCENES_PER_BATCH, QUESTIONS_PER_SCENE = 12, 4
ROUTER_STEPS = 400
MAX_EPOCHS = 1000


def own_recipe(source: OwnSet, profile: Profile, *, seed: int = 0) -> Recipe:
    """The recipe of a set: the architecture and the weights of the published model that its `start_from` names, which
    meet its questions under random routes. Raises SourceError for settings that contradict each other."""
    config, modalities = source.config, source.modalities
    start = get_recipe(config.start_from, profile) if config.start_from else None
    model = (start or get_recipe("emoji_routed", profile)).model
    if unknown := [m.value for m in modalities if m not in model.modalities]:
        raise SourceError(f"start_from: {config.start_from} has no encoder of {unknown[0]}")
    vision = model.vision
    if config.backbone and not timm.is_model(config.backbone):
        raise SourceError(f"backbone must be a model of timm: got {config.backbone!r}")
    if config.backbone:
        vision = VisionConfig(name=config.backbone, image_size=config.image_size, pretrained=True)
    elif (config.image_size, config.frame_size) != (vision.image_size, model.video.frame_size):
        if not config.train_encoders and {Modality.IMAGE, Modality.VIDEO} & {*modalities}:
            raise SourceError(
                f"image_size and frame_size are {config.image_size} and {config.frame_size}, those of "
                f"{config.start_from} {vision.image_size} and {model.video.frame_size}: expected the same, or "
                "train_encoders, or a backbone"
            )
        vision = replace(vision, image_size=config.image_size)
    video = replace(model.video, frame_size=config.frame_size)
    model = replace(model, modalities=modalities, vision=vision, video=video)
    media = modalities[1:]
    data = DataConfig(
        max_batch_cost=SCENES_PER_BATCH,
        modality_costs=dict.fromkeys(media, 1 / len(media)),
        questions_per_scene=QUESTIONS_PER_SCENE,
    )
    training = TrainingConfig(
        epochs=_epochs(source, config.steps),
        learning_rate=5e-4,
        warmup_fraction=0.05,
        horizontal_flip=False,
        encoder_lr_scale=0.2,
        frozen_encoders=() if config.train_encoders else media,
        random_route_prob=0.5,
    )
    return Recipe(source.name, profile.trained_as, source, model, data, training, seed, init_from=start)


def own_router_recipe(network: Recipe, profile: Profile, *, seed: int = 0, steps: int = ROUTER_STEPS) -> RouterRecipe:
    """The recipe of a router of `own_recipe`. steps: of training, about."""
    recipe = get_router_recipe(f"group_{profile.emoji_world.penalties[1]}", profile, network=network, seed=seed)
    epochs = max(10, _epochs(network.source, steps))  # validated ten times, whatever an epoch holds
    return replace(recipe, router=replace(recipe.router, epochs=epochs))


def _epochs(source: Any, steps: int) -> int:
    """So many that there are about `steps` batches."""
    scenes = len({question.scene for question in source.questions()["train"]})
    return min(MAX_EPOCHS, math.ceil(steps / math.ceil(scenes / SCENES_PER_BATCH)))


class OwnResult(NamedTuple):
    """One number of `evaluate_own`, with its 95 % interval."""

    estimate: Estimate
    control: bool  # of a baseline
    n: int  # questions


def evaluate_own(
    network: TrainedModel, router: Router, *, resamples: int, seed: int = 0, split: str = "test"
) -> dict[str, OwnResult]:
    """What a model of a set reaches, by name.

    accuracy: of everything; _without_<modality>, majority_by_question: of what cannot look or read; gain_over_majority:
    the difference to the latter, question by question. routed_accuracy, routed_flops (a fraction of the dense ones),
    routed_minus_dense: under the router's routes. static_accuracy, static_flops: one combination of levels for all
    questions, the cheapest that is as accurate as everything on validation.
    """
    dataset, options = network.data.dataset(split), {"resamples": resamples, "seed": seed}
    results = {}

    def add(name: str, score: np.ndarray, control: bool) -> None:
        results[name] = OwnResult(proportion(score, dataset.scenes, **options), control, len(score))

    predictions = predict_without_each(network.model, network.data.loader(split), dataset)
    for removed, found in predictions.items():
        add("accuracy" if removed is None else f"accuracy_without_{removed}", found.score, removed is not None)
    majority = majority_by_question(network.data.dataset("train"), dataset).score
    add("majority_by_question_accuracy", majority, True)
    gain = paired_difference(predictions[None].score[None], majority[None], dataset.scenes, **options)
    results["gain_over_majority"] = OwnResult(gain, False, len(majority))
    evaluator = PolicyEvaluator(network.model, dataset)
    dense = evaluator.evaluate(evaluator.space.dense(evaluator.present))
    route = evaluator.collect_routes(lambda batch: network.model.select_route(router, batch)[0])
    fixed = _cheapest_levels(PolicyEvaluator(network.model, network.data.dataset("validation")))
    outcomes = {
        "routed": evaluator.evaluate(route, router_flops=router.flops),
        "static": evaluator.evaluate(_same_levels(evaluator, fixed)),
    }
    order = evaluator.scenes
    for name, outcome in outcomes.items():
        control = name == "static"
        results[f"{name}_accuracy"] = OwnResult(proportion(outcome.correct, order, **options), control, len(order))
        cost = paired_ratio(outcome.flops[None], outcome.dense_flops[None], order, **options)
        results[f"{name}_flops"] = OwnResult(cost, control, len(order))
    change = paired_difference(outcomes["routed"].correct[None], dense.correct[None], order, **options)
    results["routed_minus_dense"] = OwnResult(change, False, len(order))
    return results


def _same_levels(evaluator: PolicyEvaluator, levels: Mapping[Modality, ComputeLevel]) -> Route:
    """These levels for all questions, with all paths between what is encoded; the question is always read."""
    space, present = evaluator.space, evaluator.present
    chosen = torch.tensor([int(levels.get(m, ComputeLevel.FULL)) for m in Modality]).expand(len(present), -1)
    chosen = torch.where(evaluator.question_mask, int(ComputeLevel.FULL), chosen)
    return space.project(chosen, torch.ones(len(present), space.depth, len(space.paths), dtype=torch.bool), present)


def _cheapest_levels(evaluator: PolicyEvaluator) -> dict[Modality, ComputeLevel]:
    """Of all combinations of levels the cheapest that is at least as accurate as everything."""
    media = [m for m in evaluator.space.modalities if m is not Modality.TEXT]
    choices = itertools.product(*(evaluator.space.allowed_levels(m) for m in media))
    plans: list[dict[Modality, ComputeLevel]] = [dict(zip(media, levels, strict=True)) for levels in choices]
    outcomes = [evaluator.evaluate(_same_levels(evaluator, plan)) for plan in plans]
    least = evaluator.evaluate(evaluator.space.dense(evaluator.present)).accuracy
    good = [i for i, outcome in enumerate(outcomes) if outcome.accuracy >= least]
    return plans[min(good, key=lambda i: outcomes[i].cost)]
