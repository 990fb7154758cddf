"""Verbs of the small real model that ships with the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reelign.cli.app import miniature_app
from reelign.errors import ReelignError
from reelign.terminal import bars, console, quiet_libraries, show_table


@miniature_app.command("train")
def miniature_train(
    out: Annotated[Path, typer.Option(help="Working folder; the same command resumes.")] = Path("runs/miniature"),
    parts: Annotated[str, typer.Option(help="codec, base, capacity, enhancer, eye: which parts to train.")] = (
        "codec,base,capacity,enhancer,eye"
    ),
) -> None:
    """Train the miniature from nothing: two hours on two cores, half of them for the capacity check."""
    from reelign.miniature.train import train

    quiet_libraries()
    with bars(console) as progress:
        model = train(out, parts.split(","), lambda part, n, total, loss: progress(part, n, total, f"loss {loss:.4f}"))
    console.print(f"wrote [bold]{model}[/]")


@miniature_app.command("check")
def miniature_check(
    capacity: Annotated[Path | None, typer.Option(help="The clean-only model of `train`; adds its rows.")] = None,
    sft_model: Annotated[str | None, typer.Option("--sft", help="An SFT artifact; adds its rows.")] = None,
    count: Annotated[int, typer.Option(help="Held-out prompts per row.")] = 96,
) -> None:
    """Print what the miniature promises: judges, codec, capacity, base and headroom, each line with its requirement."""
    from reelign.inference.miniature_check import check

    quiet_libraries()
    with bars(console) as progress:
        findings = check(capacity, sft_model, count, progress)
    for title, header, rows in findings.tables:
        show_table(title, header, rows)
    for finding in findings.requirements:
        mark = "[green]pass[/]" if finding.passed else "[bold red]FAIL[/]"
        console.print(f"{mark}  {finding.sentence}", highlight=False)
    if not all(finding.passed for finding in findings.requirements):
        raise ReelignError("the miniature does not hold all that it promises.")
