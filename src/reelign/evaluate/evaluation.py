"""What a battery found about a model, and its file."""

from __future__ import annotations

import json
import math
from collections import Counter
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
        measures: what `reelign.data.metrics` measured, if it was asked to.
        rewrite: what the generator was given in place of `prompt`, if there was an enhancer; the prompt is judged.
        outcome: what the enhancer's guard said of it.

    Raises:
        ReelignError: a score is missing (None), not a number or not finite: a failure is never a score.
    """

    id: str
    prompt: str
    seed: int
    scores: dict[str, float]
    attributes: dict[str, bool]
    clip: str | None = None
    measures: dict[str, float] = field(default_factory=dict)
    rewrite: str = ""
    outcome: str = ""

    def __post_init__(self) -> None:
        for axis, score in self.scores.items():
            number = isinstance(score, int | float) and not isinstance(score, bool)
            if not number or not math.isfinite(score):
                raise ReelignError(f"the clip {self.id!r} has no score on {axis}, but {score!r}. Judge it again.")

    @property
    def key(self) -> tuple[str, int, str]:
        """What makes two clips of two models a pair: the same task, seed and words."""
        return self.id, self.seed, self.prompt


@dataclass(frozen=True)
class Evaluation:
    """All judged clips of one model.

    Attributes:
        battery: the conditions: judge, prompts, size, seed.
        axes: what was judged; every item has a score on each.
        items: the judged clips, each task and seed once.
        nfe: network evaluations that the sampling took, one for each clip.
        facts: anything else worth keeping.

    Raises:
        ReelignError: there is no item, one lacks a score, or one occurs twice.
    """

    battery: dict[str, Any]
    axes: tuple[str, ...]
    items: tuple[Item, ...]
    nfe: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.items or not self.axes:
            raise ReelignError("an evaluation needs at least one judged clip and one axis.")
        for item in self.items:
            if missing := [axis for axis in self.axes if axis not in item.scores]:
                raise ReelignError(f"the clip {item.id!r} has no score on {', '.join(missing)}. Judge it again.")
        twice = [key for key, count in Counter(item.key for item in self.items).items() if count > 1]
        if twice:
            raise ReelignError(
                f"the clip {twice[0][0]!r} with seed {twice[0][1]} was judged twice; give it another id."
            )

    def means(self) -> dict[str, float]:
        """Mean score of each axis."""
        return {axis: sum(item.scores[axis] for item in self.items) / len(self.items) for axis in self.axes}

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_atomically(path, json.dumps(asdict(self), indent=1, allow_nan=False))

    @classmethod
    def load(cls, path: Path) -> Evaluation:
        """Read what `save` wrote.

        Raises:
            ReelignError: the file is missing or damaged, or an item lacks a score.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            items = tuple(Item(**item) for item in raw["items"])
            return cls(raw["battery"], tuple(raw["axes"]), items, raw.get("nfe", 0), raw.get("facts", {}))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ReelignError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ReelignError(f"cannot read the evaluation {path}: {what}") from error
