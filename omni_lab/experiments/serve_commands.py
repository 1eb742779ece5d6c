"""Commands that put a model to use: export it to a folder, serve it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from omni_lab.utils.env import project_root

profile_option = click.option("--profile", default="quick", show_default=True, help="smoke, quick, standard or full")
router_option = click.option(
    "--router", default="", help="selects its routes: group_0.2, or for digits and adverse sequential"
)
variant_option = click.option(
    "--variant", default="float", show_default=True, help="its bits, like ptq_dynamic for int8"
)
KEYS_ENV_VAR = "OMNI_LAB_API_KEYS"  # separated by commas


@click.command()
@click.argument("model")
@click.option("--to", "folder", type=Path, required=True, help="where it goes; what is there is replaced")
@router_option
@variant_option
@profile_option
def export(model: str, folder: Path, router: str, variant: str, profile: str) -> None:
    """Write a trained model and its router to a folder that omni_lab.engine runs. MODEL is a name like emoji_routed or
    digits_distilled, or a set of your own."""
    print(export_model(model, folder, router=router, variant=variant, profile=profile))


def export_model(model: str, folder: Path, *, router: str, variant: str, profile: str) -> str:
    """Exports a model by name; returns what was written. Raises ValueError for a name or a variant that is unknown."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.data.sources.own_set import list_own_sets
    from omni_lab.experiments.own_sets import export_own
    from omni_lab.training import compression_recipes, exporting, fit, recipes, router_recipes, sequential_recipes

    settings = get_profile(profile)
    if model in list_own_sets():
        return export_own(model, folder, profile, variant)
    network = fit.load_or_train(recipes.get_recipe(model, settings))
    example = exporting.example_batch(network.data.dataset("validation"))
    recipe = compression_recipes.get_compression_recipe(variant, settings)
    if model.endswith("_distilled"):  # with routers that look again
        world, simple = model.removesuffix("_distilled"), ("float", "ptq_dynamic", "weights_int4")
        if variant not in simple:
            raise ValueError(f"--variant must be one of {', '.join(simple)} for {model}: got {variant!r}")
        looking = sequential_recipes.get_sequential_recipe(router or "sequential", settings, network=world)
        found: Any = sequential_recipes.load_or_train_sequential(looking, network).router
        size = exporting.export_sequential(network, found, folder, example=example, policy=recipe.policy)
        return f"{folder}: {size / 1e6:.1f} MB"
    once = router_recipes.get_router_recipe(router or "group_0.2", settings, network=model)
    trained = router_recipes.load_or_train_router(once, network)
    compressed = compression_recipes.compress(recipe, network, trained.router.eval(), example)
    routes = exporting.frequent_routes(network, trained.router.eval())
    size = exporting.export_compressed(compressed, network, folder, routes=routes)
    return f"{folder}: {size / 1e6:.1f} MB, {len(routes)} routes that are built when it is loaded"


@click.command()
@click.argument("models", nargs=-1)
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen on; others demand a key")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--key", "keys", multiple=True, help=f"a key that clients must send; may be repeated (or {KEYS_ENV_VAR})")
@click.option(
    "--per-minute", type=click.FloatRange(min=1), help="requests of one client a minute (default: any number)"
)
@click.option("--budget", type=click.FloatRange(0, 1), help="fraction of the dense cost, for routers that take one")
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="requests that run together")
@click.option("--delay", type=click.FloatRange(0), default=0.0, show_default=True, help="milliseconds to wait for them")
@click.option("--queue", type=click.IntRange(1), default=256, show_default=True, help="requests that may wait")
@click.option("--no-speech", is_flag=True, help="answer in writing only, transcribe nothing")
@router_option
@variant_option
@profile_option
def serve(models: Sequence[str], host: str, port: int, keys: Sequence[str], **options: Any) -> None:
    """Serve models to clients of OpenAI's interface and of KServe's. MODELS are names like emoji_routed (the default),
    sets of your own, or folders that `omni-lab export` wrote."""
    from omni_lab.serving.app import create_app
    from omni_lab.serving.batching import BatchingConfig
    from omni_lab.serving.engine import Engine
    from omni_lab.serving.models import ModelRepository
    from omni_lab.serving.server import is_loopback, serve
    from omni_lab.serving.settings import ServerConfig

    keys = [*keys, *filter(None, os.environ.get(KEYS_ENV_VAR, "").split(","))]
    if not keys and not is_loopback(host):
        raise ValueError(f"{host} can be reached from elsewhere: give a --key that clients must send")
    repository = ModelRepository()
    for name in models or ("emoji_routed",):
        repository.add(_load(name, **{k: options[k] for k in ("router", "variant", "profile", "budget")}))
    size, delay = options["batch_size"], options["delay"] / 1e3
    batching = BatchingConfig(size, max(32, size), max_queue_delay=delay, max_queue_size=options["queue"])
    engine = Engine(repository, config=batching)
    speech = None if options["no_speech"] else _speech(options["profile"])
    app = create_app(engine, speech=speech, config=ServerConfig(keys=keys, per_minute=options["per_minute"]))
    print(f"omni-lab: http://{host}:{port} answers; interrupt to stop", file=sys.stderr)
    serve(app, host=host, port=port)
    engine.close()


def _load(name: str, *, router: str, variant: str, profile: str, budget: float | None) -> Any:
    """A model from a folder, or one that is exported to data/served/ first, if it is not there yet."""
    from omni_lab.engine.library import MANIFEST, ArtifactError
    from omni_lab.serving.models import ServedModel

    if (Path(name) / MANIFEST).exists():
        return ServedModel.from_folder(Path(name), name=Path(name).resolve().name, budget=budget)
    settings = "-".join(filter(None, (name, router, variant, profile)))
    folder = project_root() / "data" / "served" / settings
    try:
        return ServedModel.from_folder(folder, name=name, budget=budget)
    except ArtifactError:
        print(f"omni-lab: exporting {name}, once", file=sys.stderr)
        export_model(name, folder, router=router, variant=variant, profile=profile)
        return ServedModel.from_folder(folder, name=name, budget=budget)


def _speech(profile: str) -> Any:
    """The published model that hears and speaks."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.serving.speech import HeadsSpeech
    from omni_lab.training.fit import load_or_train
    from omni_lab.training.recipes import get_recipe
    from omni_lab.worlds.sentence_sampler import TTS_VOICES

    trained = load_or_train(get_recipe("heads", get_profile(profile)))
    return HeadsSpeech(trained, [voice.variant for voice in TTS_VOICES])


COMMANDS = (export, serve)
