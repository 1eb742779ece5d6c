"""The command line: `omni-lab run`, `train`, `list`, `report`, `scorecard` and `publish`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from omni_lab.config.profiles import PROFILES, get_profile
from omni_lab.experiments import runner as runs
from omni_lab.experiments.results import read_results
from omni_lab.utils.env import RETRAIN_SINCE_ENV_VAR, project_root


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="omni-lab", description="Run the notebook series and read its results.")
    commands = parser.add_subparsers(dest="command", required=True)
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--profile", default="quick", help=f"one of {', '.join(PROFILES)} (default: quick)")
    where.add_argument(
        "--output", type=Path, default=project_root() / "reports", help="folder of the results (default: reports/)"
    )

    run = commands.add_parser("run", parents=[where], help="execute notebooks headless")
    run.add_argument("notebooks", nargs="*", help="names or numbers, like 04_training or 04 (default: all)")
    run.add_argument("--seed", type=int, help="seed of every run (default: each notebook's own)")
    run.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="set a notebook parameter"
    )
    run.add_argument("--grid", type=Path, help="a YAML file with notebooks, parameters and a grid of values")
    run.add_argument("--jobs", type=int, default=1, help="how many notebooks to run at a time (default: 1)")
    run.add_argument("--force", action="store_true", help="run finished runs again")
    run.add_argument("--retrain", action="store_true", help="ignore all earlier checkpoints (implies --force)")

    train = commands.add_parser("train", help="train a model by its recipe, or continue where it stopped")
    train.add_argument("recipe", help="like emoji_world; a wrong name lists them all")
    train.add_argument("--profile", default="quick", help=f"one of {', '.join(PROFILES)} (default: quick)")
    train.add_argument("--seed", type=int, default=0, help="of weights and batches (default: 0)")
    train.add_argument("--retrain", action="store_true", help="begin again, whatever was trained before")

    commands.add_parser("list", parents=[where], help="show the notebooks, their parameters, their runs")
    commands.add_parser("report", parents=[where], help="print the recorded results and write the index page")
    card = commands.add_parser("scorecard", parents=[where], help="what is claimed, beside what was recorded")
    card.add_argument("--published", action="store_true", help="from the published runs alone")
    card.add_argument("--markdown", action="store_true", help="as a Markdown table")
    keep = commands.add_parser("publish", parents=[where], help="copy a run's numbers and page to published/")
    keep.add_argument("notebook", help="name or number, like 04_training or 04")
    keep.add_argument("--run", default="seed0", help="which of its runs (default: seed0)")
    keep.add_argument("--figures", nargs="*", default=[], metavar="NAME", help="figures to copy as files, too")
    return parser


def parse_assignments(assignments: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE pairs, each value read as YAML. Raises UsageError for anything else."""
    values = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise runs.UsageError(f"expected NAME=VALUE: got {assignment!r}")
        try:
            values[name] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            values[name] = value  # a text with a colon in it, say: the parameter's type decides whether it will do
    return values


def command_run(args: argparse.Namespace) -> int:
    names: list[str] = args.notebooks
    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]] = {}
    if args.jobs < 1:
        raise runs.UsageError(f"--jobs must be at least 1: got {args.jobs}")
    if args.grid is not None:
        if names:
            raise runs.UsageError("give notebooks either by name or by --grid, not both")
        names, fixed, grid = runs.read_grid(args.grid)
    notebooks = [runs.find_notebook(name) for name in names] or runs.list_notebooks()
    parameters: dict[str, Any] = {"profile": args.profile, **fixed, **parse_assignments(args.parameter)}
    if args.seed is not None:
        parameters["seed"] = args.seed
    if args.retrain:
        os.environ[RETRAIN_SINCE_ENV_VAR] = str(time.time())
    jobs = runs.plan_jobs(notebooks, output=args.output, parameters=parameters, grid=grid)
    outcomes = runs.run_jobs(jobs, workers=args.jobs, force=args.force or args.retrain)
    return 1 if any(outcome.error for outcome in outcomes) else 0


def command_train(args: argparse.Namespace) -> int:
    from omni_lab.training.fit import load_or_train
    from omni_lab.training.recipes import get_recipe

    recipe = get_recipe(args.recipe, get_profile(args.profile), seed=args.seed)
    trained = load_or_train(recipe, retrain=args.retrain, use_published=False)
    last = ", ".join(f"{name} {value:.4g}" for name, value in trained.metadata["history"][-1].items())
    print(f"{recipe.name}: {trained.origin}; {last}\nin {recipe.work_folder(trained.data)}")
    return 0


def command_list(args: argparse.Namespace) -> int:
    console = Console(width=None if sys.stdout.isatty() else 110)
    table = Table("notebook", "parameters (defaults)", f"runs, profile {args.profile}", show_lines=True)
    for notebook in runs.list_notebooks():
        parameters = "\n".join(f"{p.name} = {p.default!r}  [dim]{p.help}[/]" for p in notebook.parameters.values())
        states = "\n".join(runs.run_states(args.output, args.profile, notebook)) or "none"
        table.add_row(f"[bold]{notebook.name}[/]\n{notebook.title}", parameters, states)
    console.print(table)
    return 0


def _read(args: argparse.Namespace, *, published: bool) -> list[dict[str, Any]]:
    """The published runs of the profile, and those of this machine; what is broken is named and left out."""
    folders = [args.output / "published" / args.profile] + ([] if published else [args.output / args.profile])
    warn = Console(stderr=True).print
    return [
        r for folder in folders if folder.is_dir() for r in read_results(folder, broken=lambda m: warn(m, "(left out)"))
    ]


def command_report(args: argparse.Namespace) -> int:
    from omni_lab.experiments.claims import load_claims, score_claims
    from omni_lab.experiments.report import print_results, write_index

    folder = args.output / args.profile
    results = [r for r in _read(args, published=False) if folder in r["folder"].parents]
    print_results(results, title=f"recorded results, profile {args.profile}")
    if results:
        scored = score_claims(load_claims(), _read(args, published=False))
        print(f"report: {write_index(folder, results, title=f'omni-lab: {args.profile}', scored=scored)}")
    return 0


def command_scorecard(args: argparse.Namespace) -> int:
    from omni_lab.experiments.claims import load_claims, score_claims
    from omni_lab.experiments.report import print_scorecard, scorecard_markdown

    scored = score_claims(load_claims(), _read(args, published=args.published))
    if args.markdown:
        print(scorecard_markdown(scored), end="")
    else:
        print_scorecard(scored)
    return 0


def command_publish(args: argparse.Namespace) -> int:
    from omni_lab.experiments.claims import load_claims, score_claims
    from omni_lab.experiments.report import publish_run, write_index

    place = Path(args.profile) / runs.find_notebook(args.notebook).name / args.run
    publish_run(args.output / place, args.output / "published" / place, figures=args.figures)
    results = _read(args, published=True)
    whole = [r for r in results if (r["folder"] / "notebook.html").exists()]  # others are parts of grids
    folder, title = args.output / "published" / args.profile, f"omni-lab: published, {args.profile}"
    print(f"published: {write_index(folder, whole, title=title, scored=score_claims(load_claims(), results))}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    commands = {
        "run": command_run,
        "train": command_train,
        "list": command_list,
        "report": command_report,
        "scorecard": command_scorecard,
        "publish": command_publish,
    }
    try:
        return commands[args.command](args)
    except (runs.UsageError, ValueError) as error:
        print(f"omni-lab: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("omni-lab: interrupted; the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
