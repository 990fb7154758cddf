"""What the doctor says of a recipe, by check."""

from __future__ import annotations

from pathlib import Path

import torch

from reelign.doctor import examine
from reelign.doctor.finding import Finding, look, of_all_ranks, on_all_ranks
from reelign.doctor.rehearsal import unequal
from reelign.errors import ReelignError
from reelign.recipe import Recipe
from reelign.train.parallel import World, leave


def diagnosis(recipe: Recipe) -> dict[str, Finding]:
    """Every finding; no check is told twice."""
    found = examine(recipe)
    assert len({finding.check for finding in found}) == len(found)
    return {finding.check: finding for finding in found}


def complaints(recipe: Recipe) -> dict[str, str]:
    """The sentences of the checks that failed."""
    return {check: finding.sentence for check, finding in diagnosis(recipe).items() if not finding.passed}


def ranks_that_differ(folder: Path) -> None:
    """On each of several ranks: a weight of the second is apart, its reward fails; `rank-R` says what each finds."""
    world = World.start()
    differ = unequal(world, {"same": torch.ones(3), "apart": torch.ones(3) + 1e-6 * world.rank})

    def score() -> str:
        if world.rank == 1:
            raise ReelignError("a is nan.")
        return "fine."

    found = of_all_ranks([look("rewards", lambda: on_all_ranks(world, score)), look("seed", lambda: "0.")], world)
    said = repr((differ, [(f.check, f.passed, f.sentence) for f in found]))
    (folder / f"rank-{world.rank}").write_text(said, encoding="utf-8")
    world.barrier()
    leave(0)
