"""What a battery found about a model, and its file."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from reelign.errors import ReelignError
from reelign.files import write_atomically


@dataclass(frozen=True)
class Item:
    """One judged clip.

    Attributes:
        id: name of the task; with `seed` it identifies the clip's noise.
        prompt: what was asked for.
        seed: seed of the battery.
        scores: by axis, each in [0, 1], higher is better.
        attributes: for each attribute that the prompt states, whether the clip shows it.
        clip: file relative to the evaluation, if the clip was kept.
    """

    id: str
    prompt: str
    seed: int
    scores: dict[str, float]
    attributes: dict[str, bool]
    clip: str | None = None

    def __post_init__(self) -> None:
        for axis, score in self.scores.items():
            if not math.isfinite(score):
                raise ReelignError(f"the clip {self.id!r} has no finite score on {axis}: {score}. A failure is not a score.")


@dataclass(frozen=True)
class Evaluation:
    """All judged clips of one model; `battery` says under which conditions."""

    battery: dict[str, Any]
    axes: tuple[str, ...]
    items: tuple[Item, ...]
    nfe: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def means(self) -> dict[str, float]:
        """Mean score of each axis."""
        return {axis: sum(item.scores[axis] for item in self.items) / len(self.items) for axis in self.axes}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ReelignError: the file is missing or damaged, or an item lacks a score.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(Item(**item) for item in raw["items"])
            found = cls(raw["battery"], tuple(raw["axes"]), items, raw["nfe"], raw["facts"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReelignError(f"cannot read the evaluation {path}: {error}") from error
        missing = [item.id for item in found.items if set(found.axes) - set(item.scores)]
        if missing or not found.items:
            raise ReelignError(f"{path}: no scores on every axis for {missing[:3] or 'any clip'}.")
        return found
