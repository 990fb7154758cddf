"""The command line: one verb per job, thin. Errors that are meant for users are printed alone, with exit status 1."""

from __future__ import annotations

import errno
import logging
import os
import shlex
import sys

from rich.markup import escape

from reelign.cli import training

# isort: split
# The help lists the verbs as they are imported.
from reelign.cli import judge, miniature, models, prompts, reward
from reelign.cli.app import app
from reelign.errors import ReelignError
from reelign.terminal import errors

RESUMED = frozenset({"run", "sft", "rlhf"})
"""Verbs that go on where they stopped."""
__all__ = ["app", "judge", "main", "miniature", "models", "prompts", "reward", "training"]


def main() -> None:
    """Entry point of the `reelign` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    code = _exit_code()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from reelign.train.parallel import leave

        leave(code)
    raise SystemExit(code)


def _exit_code() -> int:
    """Run the command that was asked for; what is the user's to mend is said in a sentence."""
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        if _was_interrupted(end):
            errors.print(f"[bold red]reelign:[/] {escape(_farewell())}", highlight=False, soft_wrap=True)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ReelignError as error:
        errors.print(f"[bold red]reelign:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        return 1
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        errors.print(f"[bold red]reelign:[/] the disk is full ({escape(str(error))}). What was saved is intact: free")
        errors.print("some space and run the same command again.")
        return 1
    return 0


def _was_interrupted(end: SystemExit) -> bool:
    """Whether Ctrl-C is behind an exit: typer makes it an `Exit` with status 130, whose cause it stays."""
    return end.__context__ is not None and isinstance(end.__context__.__cause__, KeyboardInterrupt)


def _farewell() -> str:
    """What is left of a command that Ctrl-C ended at once, and what goes on from there."""
    if not RESUMED.intersection(sys.argv[1:2]):
        return "stopped."
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "stopped; what the run has saved is kept, and the same command goes on from there."
    again = shlex.join(["reelign", *sys.argv[1:]])
    return f"stopped; what the run has saved is kept, and this goes on from there: {again}"
