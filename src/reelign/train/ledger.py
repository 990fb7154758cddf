"""What everything costs: one JSON line for each phase of a run."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass
class Cost:
    """Counters that the code inside a phase adds to: network evaluations (one a clip, and its share for a part of one;
    whole ones are written), clips, text or video tokens."""

    nfe: float = 0
    clips: int = 0
    tokens: int = 0


class Ledger:
    """Append-only file of phases; a phase that fails is written too, as not completed."""

    def __init__(self, path: Path, enabled: bool = True) -> None:
        self.path, self.enabled = path, enabled

    @contextmanager
    def phase(self, name: str) -> Iterator[Cost]:
        """Measure seconds and peak memory of the block, and write them with the counted cost."""
        cost, started, completed = Cost(), time.perf_counter(), False
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            yield cost
            completed = True
        finally:
            self._append(
                {
                    "phase": name,
                    "seconds": round(time.perf_counter() - started, 3),
                    "nfe": round(cost.nfe),
                    "clips": cost.clips,
                    "tokens": cost.tokens,
                    "peak_memory_bytes": peak_memory(),
                    "completed": completed,
                }
            )

    def _append(self, row: dict[str, Any]) -> None:
        if not self.enabled:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(row) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All phases so far; a line that a crash tore off is left out."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return rows


def peak_memory() -> int:
    """Bytes: of the device since the phase began on CUDA, else the largest resident size of this process so far."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
