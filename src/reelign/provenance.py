"""What was run on what: versions, hardware and the state of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import reelign

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "av", "numpy")


def run_facts(name: str, seed: int, command: str, stages: list[str], recipe: str) -> dict[str, Any]:
    """The content of a run's `run.json`."""
    return {
        "name": name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "seed": seed,
        "command": command,
        "recipe": recipe,
        "stages": stages,
        "versions": {"reelign": reelign.__version__, "python": platform.python_version()}
        | {library: version(library) for library in LIBRARIES},
        "hardware": hardware(),
        "git": git_state(),
    }


def hardware() -> dict[str, Any]:
    """The machine as far as it matters for speed."""
    facts: dict[str, Any] = {"cpus": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return facts


def git_state() -> str | None:
    """Commit of the source tree, with `+changes` when files differ from it; None outside a checkout."""
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(here), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(here), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if changed else "")
