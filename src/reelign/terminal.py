"""What a person at a terminal sees: words, tables, and progress bars with the time that is left."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console()
errors = Console(stderr=True)


def quiet_libraries() -> None:
    """Keep the chatter of the libraries underneath off the terminal; their errors still come."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="torch.distributed is disabled")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


@contextmanager
def bars(console: Console) -> Iterator[Callable[[str, int, int, str], None]]:
    """A function `(what, done, total, note)` that keeps one bar for each `what`; shown on the console until the end."""
    columns = (
        TextColumn("{task.description:<22}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as progress:

        def tell(what: str, done: int, total: int, note: str = "") -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, note=note)
            if done < (progress.tasks[tasks[what]].completed or 0):
                progress.reset(tasks[what], total=total)
            progress.update(tasks[what], completed=done, total=total, note=note)

        yield tell


def say(where: Console, words: str) -> None:
    """Words that are not ours as they are: no markup, no emoji codes, no line breaks."""
    where.print(words, markup=False, emoji=False, highlight=False, soft_wrap=True)


def show_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on standard output; its first column is text, the others are figures."""
    table = Table(title=title, title_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name == header[0] else "right")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def show_result(page: Path, summary: dict[str, Any]) -> None:
    """The headline of a run, and where its page is."""
    for number in summary["headline"]:
        console.print(f"  {number['label']}: [bold]{number['text']}[/]", highlight=False)
    console.print(f"report: [bold]{page}[/]", highlight=False)
