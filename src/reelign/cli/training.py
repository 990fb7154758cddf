"""Verbs of a run: its stages, what can be known beforehand, and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reelign.cli.app import app
from reelign.cli.options import Overrides, RecipePath
from reelign.errors import ReelignError
from reelign.terminal import bars, console, quiet_libraries, show_result


@app.command()
def run(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run all stages of a recipe, or continue where they stopped, and build the report."""
    from reelign.pipeline import run as run_recipe
    from reelign.recipe import load_recipe

    quiet_libraries()
    with bars(console) as progress:
        result = run_recipe(load_recipe(recipe, overrides or []), progress)
    show_result(result.report, result.summary)


@app.command()
def sft(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run a recipe up to supervised fine-tuning only (whatever other stages it names)."""
    _run_up_to("sft", recipe, overrides)


@app.command()
def rlhf(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Run a recipe up to reinforcement learning from rewards only (whatever stages come after it)."""
    _run_up_to("rlhf", recipe, overrides)


def _run_up_to(stage: str, recipe: Path, overrides: list[str] | None) -> None:
    from reelign.pipeline import STAGES
    from reelign.pipeline import run as run_recipe
    from reelign.recipe import load_recipe

    quiet_libraries()
    loaded = load_recipe(recipe, overrides or [])
    if getattr(loaded, stage) is None:
        raise ReelignError(f"{recipe} has no `{stage}:` stage.")
    later = STAGES[STAGES.index(stage) + 1 :]
    with bars(console) as progress:
        result = run_recipe(loaded.model_copy(update=dict.fromkeys(later)), progress)
    show_result(result.report, result.summary)


@app.command()
def curate(
    folder: Annotated[Path, typer.Argument(help="Footage: any folder of video files, with or without captions.")],
    out: Annotated[Path, typer.Option(help="The dataset to write.")],
    settings: Annotated[list[str] | None, typer.Option("--set", help="A rule, for example workers=4.")] = None,
) -> None:
    """Turn real footage into a dataset: clips, captions, measures, and a reason for everything that was dropped."""
    from reelign.data.curate import CurateConfig
    from reelign.data.curate import curate as curate_folder
    from reelign.recipe import parse_settings

    config = parse_settings(CurateConfig, settings or [])
    with bars(console) as progress:
        result = curate_folder(folder, out, config, lambda done, total: progress("curate", done, total, ""))
    console.print(f"kept [bold]{result.kept}[/] clips, dropped {result.dropped}; see {out / 'audit.html'}")


@app.command()
def doctor(recipe: RecipePath, overrides: Overrides = None) -> None:
    """Find out what can be known to be wrong before the hours are spent; changes nothing."""
    from reelign.doctor import examine
    from reelign.recipe import load_recipe

    quiet_libraries()
    findings = examine(load_recipe(recipe, overrides or []))
    for finding in findings:
        mark = "[green]pass[/]" if finding.passed else "[bold red]FAIL[/]"
        console.print(f"{mark}  [bold]{finding.check}[/]: {finding.sentence}", highlight=False)
    if not all(finding.passed for finding in findings):
        raise ReelignError("the recipe would not run well; each FAIL above says what to do.")


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run, for example runs/demo.")]) -> None:
    """Build (again) the page and summary.json of a run from what is on disk."""
    from reelign.report.page import build_report

    console.print(f"wrote [bold]{build_report(folder)}[/]")
