"""Commands for a set of one's own: make it, ask its model, save its model. `omni-lab train` trains it."""

from __future__ import annotations

import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from omni_lab.utils.env import project_root

profile_option = click.option("--profile", default="quick", show_default=True, help="smoke, quick, standard or full")
FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("name")
@click.option("--questions", type=FOLDER, required=True, help="a CSV file: question, answer, and image, audio or video")
@click.option("--images", type=FOLDER, help="folder of the files that its column image names")
@click.option("--audio", type=FOLDER, help="the same for audio: WAV or FLAC")
@click.option("--video", type=FOLDER, help="the same for video: animated GIF, PNG or WebP")
@click.option(
    "--image-size", type=click.IntRange(8), default=64, show_default=True, help="pixels; images are resized to squares"
)
@click.option("--train-encoders", is_flag=True, help="train the encoders, too: slower, for larger sets")
@click.option("--backbone", default="", help="timm's name of an image encoder, with its weights from the internet")
@click.option("--steps", type=click.IntRange(1), default=600, show_default=True, help="of training")
@click.option("--replace", is_flag=True, help="replace the set of this name")
def new(name: str, questions: Path, **options: Any) -> None:
    """Make a set of your own from folders of media and a CSV file of questions; nothing is copied but the questions.

    Then: omni-lab train NAME, and omni-lab ask NAME "a question" --image FILE.
    """
    from omni_lab.config.profiles import get_profile
    from omni_lab.data.sources.new_set import create_own_set, describe_own_set
    from omni_lab.training.own_model import own_recipe
    from omni_lab.training.recipes import list_recipes

    if name in list_recipes():
        raise ValueError(f"{name!r} is the name of a model of this project: choose another")
    command = shlex.join(["omni-lab", *sys.argv[1:]])
    folders = {key: value for key, value in options.items() if value is not None}
    check = partial(own_recipe, profile=get_profile("quick"))  # settings that contradict each other are told now
    own = create_own_set(name, questions, made_by=command, check=check, **folders)
    print("\n".join([*describe_own_set(own), f"in {own.directory}", f"next: omni-lab train {name}"]))


def train_own(name: str, profile: str, *, seed: int, retrain: bool) -> None:
    """Trains the model and the router of a set, measures both on its test split, and records the results."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.experiments.results import start_run
    from omni_lab.training.own_model import evaluate_own

    settings = get_profile(profile)
    command = f"omni-lab train {name} --profile {profile} --seed {seed}"
    folder = str(_results(name, profile, seed))
    run = start_run(name, profile=profile, seed=seed, output_dir=folder, command=command)
    network, router, _ = _load(name, profile, seed, retrain=retrain)
    measured = evaluate_own(network, router, resamples=settings.bootstrap_resamples, seed=seed)
    for title, (estimate, control, n) in measured.items():
        options: dict[str, Any] = {"control": control, "n": n, "higher_is_better": not title.endswith("flops")}
        run.record(f"{name}/{title}", estimate.value, estimate.interval, **options)
        print(f"{title.replace('_', ' ')}: {estimate}{'  (baseline)' * control}")
    n = measured["accuracy"].n
    print(f"of {n} test questions, one split and one seed" + ": too few to tell much" * (n < 50))
    print(f'recorded in {run.folder}\nnext: omni-lab ask {name} "a question" --image FILE')


def _results(name: str, profile: str, seed: int) -> Path:
    return project_root() / "reports" / profile / f"own_{name}" / f"seed{seed}"


def _load(name: str, profile: str, seed: int, *, retrain: bool = False) -> Any:
    """The model of a set, its router, and the router's recipe."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.data.sources.own_set import OwnSet, sets_folder
    from omni_lab.training.fit import load_or_train
    from omni_lab.training.own_model import own_recipe, own_router_recipe
    from omni_lab.training.router_recipes import load_or_train_router

    settings = get_profile(profile)
    recipe = own_recipe(OwnSet(sets_folder() / name), settings, seed=seed)
    network = load_or_train(recipe, retrain=retrain)
    routing = own_router_recipe(recipe, settings, seed=seed)
    return network, load_or_train_router(routing, network, retrain=retrain).router, routing


def export_own(name: str, folder: Path, profile: str, variant: str) -> str:
    """Writes the model of a set and its router to a folder that omni_lab.engine runs; returns what was written."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.training import exporting
    from omni_lab.training.compression_recipes import compress, get_compression_recipe

    network, router, routing = _load(name, profile, 0)
    example = exporting.example_batch(routing.network.data_module().dataset("validation"))
    recipe = get_compression_recipe(variant, get_profile(profile))
    compressed, routes = compress(recipe, network, router, example), exporting.frequent_routes(network, router)
    size = exporting.export_compressed(compressed, network, folder, routes=routes)
    return f"{folder}: {size / 1e6:.1f} MB, {len(routes)} routes that are built when it is loaded"


def _pipeline(name: str, profile: str, seed: int) -> Any:
    from omni_lab.training.pretrained import VQAPipeline

    network, router, routing = _load(name, profile, seed)
    return VQAPipeline.from_trained(network, routing.network.model, (routing, router))


@click.command()
@click.argument("name")
@click.argument("question")
@click.option("--image", type=FOLDER, help="a picture")
@click.option("--audio", type=FOLDER, help="a WAV or FLAC file")
@click.option("--video", type=FOLDER, help="an animated GIF, PNG or WebP file")
@click.option("--seed", default=0, show_default=True, help="of the model")
@profile_option
def ask(name: str, question: str, seed: int, profile: str, **media: Any) -> None:
    """Ask the model of a set of your own, or a model in a folder that `omni-lab save` wrote, about new files."""
    from omni_lab.training.pretrained import CONFIG, VQAPipeline

    if not any(media.values()):
        raise ValueError("nothing to look at or listen to: expected --image, --audio or --video")
    in_folder = (Path(name) / CONFIG).exists()
    pipeline = VQAPipeline.from_pretrained(name) if in_folder else _pipeline(_known(name), profile, seed)
    answer = pipeline(question, **media)
    others = ", ".join(f"{text} {p:.2f}" for text, p in answer.others.items())
    print(f"{answer.text} ({answer.confidence:.2f}); then {others}")
    print("ran: " + ", ".join(f"{modality}: {level}" for modality, level in answer.ran.items()))


def _known(name: str) -> str:
    from omni_lab.data.sources.own_set import list_own_sets
    from omni_lab.utils.lookup import lookup

    return lookup(name, {known: known for known in list_own_sets()}, "set of your own (made by omni-lab new)")


@click.command()
@click.argument("name")
@click.option("--to", "folder", type=FOLDER, required=True, help="where it goes")
@click.option("--results", type=FOLDER, help="a metrics.json whose numbers go into the model card")
@click.option("--seed", default=0, show_default=True, help="of the model")
@profile_option
def save(name: str, folder: Path, results: Path | None, seed: int, profile: str) -> None:
    """Write a trained model with its tokenizer and a model card to a folder, as the Hugging Face Hub expects it. NAME
    is a set of your own, or a model like easy_vqa."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.data.sources.own_set import list_own_sets
    from omni_lab.training.fit import load_or_train
    from omni_lab.training.pretrained import VQAPipeline, model_card
    from omni_lab.training.recipes import get_recipe

    if name in list_own_sets():
        pipeline = _pipeline(name, profile, seed)
        recorded = _results(name, profile, seed) / "metrics.json"
        results = results or (recorded if recorded.exists() else None)
    else:
        recipe = get_recipe(name, get_profile(profile), seed=seed)
        pipeline = VQAPipeline.from_trained(load_or_train(recipe), recipe.model)
    metrics = [] if results is None else json.loads(results.read_text(encoding="utf-8"))["metrics"]
    card = model_card(name, pipeline.config, metrics, source=results.name if results else "")
    pipeline.save_pretrained(folder, card=card)
    print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB")


COMMANDS = (new, ask, save)
