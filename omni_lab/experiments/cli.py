"""The command line. What takes time to import is imported inside the commands, so that `--help` starts at once."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import yaml

from omni_lab.experiments import own_sets, serve_commands
from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR, keep_freed_memory, limit_spinning, project_root

app = click.Group(help="Run the notebook series and read its results.")
profile_option = click.option("--profile", default="quick", show_default=True, help="smoke, quick, standard or full")
output_option = click.option(
    "--output", type=Path, default=lambda: project_root() / "reports", help="folder of the results (default: reports/)"
)


def results_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --profile and --output."""
    return profile_option(output_option(command))


@app.command()
@click.argument("notebooks", nargs=-1)
@results_options
@click.option("--seed", type=int, help="seed of every run (default: each notebook's own)")
@click.option("-p", "--parameter", "assignments", multiple=True, metavar="NAME=VALUE", help="set a notebook parameter")
@click.option("--grid", type=Path, help="a YAML file with notebooks, parameters and a grid of values")
@click.option("--jobs", type=click.IntRange(min=1), default=1, help="how many notebooks to run at a time (default: 1)")
@click.option("--force", is_flag=True, help="run finished runs again")
@click.option("--retrain", is_flag=True, help="ignore all earlier checkpoints (implies --force)")
def run(notebooks: Sequence[str], profile: str, output: Path, **options: Any) -> int:
    """Execute notebooks headless. NOTEBOOKS are names or numbers, like 04_training or 04 (default: all)."""
    from omni_lab.experiments.jobs import Job, find_notebook, list_notebooks, plan_jobs, read_grid
    from omni_lab.experiments.report import series_state
    from omni_lab.experiments.runner import JobResult, run_jobs

    if options["grid"] and notebooks:
        raise ValueError("give notebooks either by name or by --grid, not both")
    names, fixed, grid = read_grid(options["grid"]) if options["grid"] else (notebooks, {}, {})
    parameters = {"profile": profile, **fixed, **_parse_assignments(options["assignments"])}
    if options["seed"] is not None:
        parameters["seed"] = options["seed"]
    if options["retrain"]:
        os.environ[RETRAIN_SINCE_ENV_VAR] = str(time.time())
    found = [find_notebook(name) for name in names] or list_notebooks()
    jobs = plan_jobs(found, output=output, parameters=parameters, grid=grid)
    pages = sorted({job.folder.parents[1] / "index.html" for job in jobs})

    def show(ended: Sequence[JobResult], running: Sequence[Job], waiting: int) -> None:
        for page in pages:
            state = series_state(len(jobs), ended, running, waiting)
            _write_index(page.parent, warn=lambda message: None, state=state, running=bool(running))

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    click.echo(f"results appear in {', '.join(map(str, pages))}")
    force = options["force"] or options["retrain"]
    failed = any(result.error for result in run_jobs(jobs, workers=options["jobs"], force=force, on_change=show))
    last = pages if failed or len(jobs) > 1 else [jobs[0].folder / "notebook.html"]
    click.echo(f"results: {', '.join(map(str, last))}")
    return int(failed)


def _parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, each value read as YAML."""
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise ValueError(f"expected NAME=VALUE: got {assignment!r}")
        try:
            values[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            values[name] = value  # text with a colon, for example: the parameter's type decides whether it is valid
    return values


@app.command()
@click.argument("recipe")
@profile_option
@click.option("--seed", default=0, show_default=True, help="seed of weights and batches")
@click.option("--retrain", is_flag=True, help="begin again, whatever was trained before")
def train(recipe: str, profile: str, seed: int, retrain: bool) -> None:
    """Train a model, or continue where it stopped. RECIPE is a name like emoji_world, or a set of your own, whose model
    and router are measured, too; a wrong one lists them all."""
    from dataclasses import replace

    from omni_lab.config.profiles import get_profile
    from omni_lab.data.sources.own_set import list_own_sets
    from omni_lab.training.fit import load_or_train
    from omni_lab.training.recipes import get_recipe

    if recipe in list_own_sets():
        own_sets.train_own(recipe, profile, seed=seed, retrain=retrain)
        return
    found = replace(get_recipe(recipe, get_profile(profile), seed=seed), may_train=True)
    trained = load_or_train(found, retrain=retrain, use_published=False)
    last = ", ".join(f"{name} {value:.4g}" for name, value in trained.metadata["history"][-1].items())
    print(f"{found.name}: {trained.origin}; {last}\nin {found.work_folder(trained.data)}")


@app.command("list")
@results_options
def list_runs(profile: str, output: Path) -> None:
    """Show the notebooks, their parameters, their runs."""
    from rich.console import Console
    from rich.table import Table

    from omni_lab.experiments.jobs import list_notebooks, run_states

    table = Table("notebook", "parameters (defaults)", f"runs, profile {profile}", show_lines=True)
    for notebook in list_notebooks():
        parameters = "\n".join(f"{n} = {p.default!r}  [dim]{p.help}[/]" for n, p in notebook.parameters.items())
        states = "\n".join(run_states(output, profile, notebook)) or "none"
        table.add_row(f"[bold]{notebook.name}[/]\n{notebook.title}", parameters, states)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def _read_scored(
    output: Path, profile: str, *folders: str, warn: Callable[[str], Any] | None = None
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Results recorded in folders below `output`, and the claims scored by them. Broken files are named."""
    from omni_lab.config.profiles import get_profile
    from omni_lab.experiments.claims import load_claims, score_claims
    from omni_lab.experiments.results import read_results

    trained, warn = get_profile(profile).trained_as, warn or partial(print, file=sys.stderr)
    paths = [output / folder.format(profile=profile, trained=trained) for folder in folders]
    results = [result for path in dict.fromkeys(paths) for result in read_results(path, broken=warn)]
    return results, score_claims(load_claims(), results, profile=trained)


ALL_RESULTS = ("published", "{trained}", "{profile}")


def _write_index(folder: Path, *, warn: Callable[[str], Any] | None = None, **state: Any) -> list[dict[str, Any]]:
    """Writes the index page of a profile's folder, where it has runs or a state, and returns its results."""
    from omni_lab.experiments.report import add_published, write_index

    recorded, scored = _read_scored(folder.parent, folder.name, *ALL_RESULTS, warn=warn)
    published = [result for result in recorded if folder.parent / "published" in result["folder"].parents]
    results = add_published([result for result in recorded if folder in result["folder"].parents], published)
    if results or state:
        write_index(folder, results, title=f"omni-lab: {folder.name}", scored=scored, **state)
    return results


@app.command()
@results_options
def report(profile: str, output: Path) -> None:
    """Print the recorded results beside the published ones, and write the index page."""
    from omni_lab.experiments.report import print_results

    results = _write_index(output / profile)
    print_results(results, title=f"recorded results, profile {profile}")
    if results:
        print(f"report: {output / profile / 'index.html'}")


@app.command()
@results_options
@click.option("--published", is_flag=True, help="from the published runs alone")
@click.option("--markdown", is_flag=True, help="as a Markdown page")
def scorecard(profile: str, output: Path, published: bool, markdown: bool) -> None:
    """Show what is claimed, beside what was recorded. Runs of standard and full decide; others stand beside them."""
    from omni_lab.experiments.report import print_scorecard, scorecard_markdown

    _, scored = _read_scored(output, profile, *("published",) if published else ALL_RESULTS)
    if markdown:
        print(scorecard_markdown(scored), end="")
    else:
        print_scorecard(scored)


@app.command()
@click.argument("notebook")
@click.option(
    "--profile", default="", help="of the run (default: the published one of standard, else standard or quick)"
)
@output_option
@click.option("--to", "file", type=Path, help="the file to write (default: NOTEBOOK-slides.html, here)")
@click.option("--code", is_flag=True, help="with all code, not only what fits a slide")
def slides(notebook: str, profile: str, output: Path, file: Path | None, code: bool) -> None:
    """Make slides of a notebook's page, in one file for a browser, where the arrow keys turn them. NOTEBOOK is a name
    or number, like 05_routing or 05."""
    from omni_lab.experiments.jobs import find_notebook
    from omni_lab.experiments.slides import slides_page

    name = find_notebook(notebook).name
    folders = (profile, f"published/{profile}") if profile else ("published/standard", "standard", "quick")
    pages = [output / folder / name / "seed0" / "notebook.html" for folder in folders]
    found = next((page for page in pages if page.exists()), None)
    if found is None:
        raise ValueError(f"{name} has no page yet: expected {' or '.join(map(str, pages))}; `omni-lab run` makes one")
    file = file or Path(f"{name}-slides.html")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(slides_page(found.read_text(encoding="utf-8"), code=code), encoding="utf-8")
    print(f"slides of {found}: {file}")


@app.command()
@click.argument("notebook")
@results_options
@click.option("--run", "run_name", default="seed0", show_default=True, help="which of its runs")
@click.option("--figures", multiple=True, metavar="NAME", help="a figure to copy as a file, too; may be repeated")
def publish(notebook: str, profile: str, output: Path, run_name: str, figures: Sequence[str]) -> None:
    """Copy a run's numbers and page to published/, if its code was committed, and write the scorecard there anew.
    NOTEBOOK is a name or number, like 04_training or 04."""
    from omni_lab.experiments.jobs import find_notebook
    from omni_lab.experiments.report import publish_run, scorecard_markdown, write_index

    folder, place = output / "published" / profile, Path(find_notebook(notebook).name, run_name)
    publish_run(output / profile / place, folder / place, figures=figures)
    results, scored = _read_scored(output, profile, "published")
    results = [result for result in results if folder in result["folder"].parents]
    whole = [result for result in results if (result["folder"] / "notebook.html").exists()]  # others are parts of grids
    print(f"published: {write_index(folder, whole, title=f'omni-lab: published, {profile}', scored=scored)}")
    _, scored = _read_scored(output, "standard", "published")
    (output / "published" / "SCORECARD.md").write_text(scorecard_markdown(scored), encoding="utf-8")


for command in (*own_sets.COMMANDS, *serve_commands.COMMANDS):
    app.add_command(command)


def main(argv: list[str] | None = None) -> int:
    """Runs a command. Returns 0, or 1 if a notebook failed, 2 for wrong usage, 130 after an interrupt."""
    limit_spinning()
    keep_freed_memory()
    try:
        return int(app(argv, prog_name="omni-lab", standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except ValueError as error:
        print(f"omni-lab: {error}", file=sys.stderr)
        return 2
    except SystemExit as error:  # Lightning's way to end a training that is interrupted
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        print("omni-lab: interrupted; the same command continues", file=sys.stderr)
        return 130
    except (click.Abort, KeyboardInterrupt):
        print("omni-lab: interrupted; the same command continues", file=sys.stderr)
        return 130
