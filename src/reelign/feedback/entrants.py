"""Who takes part in a study, and whether they can be compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from reelign.errors import ReelignError


@dataclass(frozen=True)
class Sample:
    """A clip that takes part.

    Attributes:
        prompt_id: the same for all entrants' clips of one prompt.
        prompt: what the clip should show.
        file: a video.
        seed: of its noise, where it is known; clips of one prompt must not differ in it.
    """

    prompt_id: str
    prompt: str
    file: Path
    seed: int | None = None


@dataclass(frozen=True)
class Entrant:
    """Who takes part, with a clip for each prompt."""

    name: str
    clips: Sequence[Sample]

    def __getitem__(self, prompt_id: str) -> Sample:
        return {sample.prompt_id: sample for sample in self.clips}[prompt_id]


def check_entrants(entrants: Sequence[Entrant]) -> None:
    """Whether entrants have clips of the same prompts and seeds.

    Raises:
        ReelignError: they do not; the message names the first prompt that is missing or differs.
    """
    if len(entrants) < 2:
        raise ReelignError("a study needs at least two entrants.")
    names = [entrant.name for entrant in entrants]
    if len(set(names)) < len(names):
        raise ReelignError(f"two entrants have the same name: {', '.join(names)}.")
    if empty := [entrant.name for entrant in entrants if not entrant.clips]:
        raise ReelignError(f"{empty[0]} has no clips.")
    for entrant in entrants:
        for other in entrants:
            _check(entrant, other)


def _check(entrant: Entrant, other: Entrant) -> None:
    clips = {sample.prompt_id: sample for sample in other.clips}
    for sample in entrant.clips:
        found = clips.get(sample.prompt_id)
        if found is None:
            raise ReelignError(
                f"{other.name} has no clip of {sample.prompt!r}, which {entrant.name} has ({len(clips)} clips against "
                f"{len(entrant.clips)}). All entrants need clips of the same prompts."
            )
        if None not in (found.seed, sample.seed) and found.seed != sample.seed:
            raise ReelignError(
                f"{sample.prompt!r} was sampled with seed {sample.seed} by {entrant.name} and with {found.seed} by "
                f"{other.name}. Sample both with the same seed."
            )
