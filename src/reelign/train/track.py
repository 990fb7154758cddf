"""Numbers over steps: `metrics.jsonl` always, TensorBoard and Weights & Biases when they are asked for."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from reelign.errors import ReelignError
from reelign.files import write_atomically

Sink = Literal["tensorboard", "wandb"]


class Tracker:
    """Writes rows `{"step": ..., name: number}`.

    Args:
        folder: holds `metrics.jsonl`.
        enabled: False on every rank but the first.
        sinks: further places; asked for and not installed is an error.
    """

    def __init__(self, folder: Path, enabled: bool = True, sinks: Sequence[Sink] = ()) -> None:
        self.path, self.enabled = folder / "metrics.jsonl", enabled
        self._board: Any = None
        self._wandb: Any = None
        if enabled and "tensorboard" in sinks:
            self._board = _require("torch.utils.tensorboard", "tensorboard").SummaryWriter(str(folder / "tensorboard"))
        if enabled and "wandb" in sinks:
            self._wandb = _require("wandb", "wandb").init(project="reelign", dir=str(folder), resume="allow")

    def resume(self, step: int) -> None:
        """Forget rows after `step`, and a line that a crash tore off: they will be written again."""
        if self.enabled and self.path.exists():
            kept = [row for row in read_metrics(self.path) if row["step"] <= step]
            write_atomically(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def log(self, step: int, **numbers: float) -> None:
        """Append one row."""
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **numbers}) + "\n")
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log(numbers, step=step)

    def close(self) -> None:
        """Flush what TensorBoard and W&B hold back."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a `metrics.jsonl`; a torn line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def _require(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ReelignError(
            f"tracking with {package} was asked for, but it is not installed: pip install {package}."
        ) from error
