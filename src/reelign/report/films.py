"""The clips of a run side by side: the same prompt and seed in every stage, as data addresses inside the page."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
from av.error import FFmpegError

from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation, Item
from reelign.report.summary import WITHOUT, Stage

MOST_PROMPTS = 12
MOST_BYTES = 24 * 2**20
"""Videos that a page carries: more would be slow to open, and the clips lie beside it anyway."""


@dataclass(frozen=True)
class Film:
    """A clip inside the page, with what the judge says of it."""

    stage: int
    title: str
    source: str
    width: int
    height: int
    item: Item


@dataclass(frozen=True)
class Showing:
    """All prompts shown; `kept` prompts have clips, of `judged` in the battery; every film has the same frame rate."""

    rows: tuple[tuple[str, tuple[Film, ...]], ...]
    kept: int
    judged: int
    fps: float
    frames: int

    @property
    def pixelated(self) -> bool:
        """Whether the clips are so small that their pixels should be shown as squares."""
        return max(max(film.width, film.height) for _, films in self.rows for film in films) <= 128


@dataclass(frozen=True)
class Judged:
    """A model's run of a battery whose clips can be shown.

    Attributes:
        stage: number of the stage, which gives the colour.
        title: what people call it.
        evaluation: its items.
        folder: what the items' clips are relative to.
    """

    stage: int
    title: str
    evaluation: Evaluation
    folder: Path


def of_stages(stages: Sequence[Stage]) -> list[Judged]:
    """The runs of the run's own battery, one for each stage that came so far."""
    return [
        Judged(number, stage.title, stage.evaluation, stage.folder)
        for number, stage in enumerate(stages)
        if stage.evaluation is not None and stage.without is None
    ]


def of_addition(stages: Sequence[Stage]) -> list[Judged]:
    """The two runs of the last stage that adds something to a model: without it and with it."""
    for number, stage in reversed(list(enumerate(stages))):
        if stage.evaluation is not None and stage.without is not None:
            before = Judged(max(number - 1, 0), "As the user typed it", stage.without, stage.folder / WITHOUT)
            return [before, Judged(number, "As rewritten", stage.evaluation, stage.folder)]
    return []


def showing(judged: Sequence[Judged]) -> Showing | None:
    """The first prompts of the battery that every run kept a clip of, in the battery's order: not picked.

    Raises:
        ReelignError: a clip is damaged.
    """
    tables = [_clips(run) for run in judged]
    keys = [key for key in tables[0] if all(key in table for table in tables)] if tables else []
    rows, size, fps, frames = [], 0, 0.0, 0
    for key in keys[:MOST_PROMPTS]:
        paths = [table[key][1] for table in tables]
        size += sum(path.stat().st_size for path in paths)
        if rows and size > MOST_BYTES:
            break
        films = []
        for run, table in zip(judged, tables, strict=True):
            item, path = table[key]
            width, height, fps, count = _format(path)
            frames = max(frames, count)
            films.append(Film(run.stage, run.title, _address(path), width, height, item))
        rows.append((films[0].item.prompt, tuple(films)))
    if not rows:
        return None
    return Showing(tuple(rows), len(keys), len(judged[0].evaluation.items), fps, frames)


def _clips(run: Judged) -> dict[tuple[str, int, str], tuple[Item, Path]]:
    """The items whose clip is on disk."""
    found = {item.key: (item, run.folder / item.clip) for item in run.evaluation.items if item.clip}
    return {key: (item, path) for key, (item, path) in found.items() if path.exists()}


def _format(path: Path) -> tuple[int, int, float, int]:
    """Width, height, frames a second and number of frames."""
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            return stream.width, stream.height, float(stream.average_rate or 0), stream.frames
    except (OSError, FFmpegError, IndexError) as error:
        raise ReelignError(f"cannot read the clip {path}: {error}. Was it damaged? Delete it to go without.") from error


def _address(path: Path) -> str:
    return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
