"""What each piece of the preset `reelign` is worth, one change at a time, from one parent.

    python benchmarks/rl_ablation.py --parent runs/demo/sft/model --seeds 0 1 2

Each variant runs the recipe's `rlhf` stage with one change, without early stop; the group sizes keep the clips of an
update. The shared prefix changes no clip (a test says so), so its worth is counted in network evaluations.
Also measures the gradient norm of one update at each trained step of the grid, plain and rectified.
Writes `rl_ablation.json` and `.md`. A run that is complete under `--runs` is read, not repeated.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

from reelign.flow.step import gradient_scale
from reelign.recipe import Recipe, load_recipe
from reelign.stages.rlhf import training_sampler
from rl_runs import POLICY_GRADIENT, TO_THE_END, Outcome, run_stage, trainer, write
from tables import AXES, head, interval, line, over_seeds, weakest

ALGORITHM = "rlhf.algorithm."
VARIANTS: dict[str, list[str]] = {
    "reelign": [],
    "steps differ inside a group": [f"{ALGORITHM}iso_temporal=false"],
    "not rectified": [f"{ALGORITHM}weight=none"],
    "noise not shared": [f"{ALGORITHM}shared_noise=false"],
    "guidance in rollout only": [f"{ALGORITHM}guidance=rollout"],
    "no guidance": [f"{ALGORITHM}guidance=none"],
    "white noise": [f"{ALGORITHM}band=1"],
    "deviations of the group": [f"{ALGORITHM}denominator=group"],
    "groups of 4": ["rlhf.group_size=4", "rlhf.prompts_per_update=32"],
    "groups of 16": ["rlhf.group_size=16", "rlhf.prompts_per_update=8"],
}
"""The recipe itself is guided everywhere, in 16 groups of 8."""
CHANGES = [
    f"{ALGORITHM}preset=reelign",
    *POLICY_GRADIENT,
    *TO_THE_END,
    "rlhf.updates=12",
    "rlhf.validate_every=6",
]


def main() -> None:
    """Run, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/miniature-rlhf.yaml"))
    parser.add_argument("--parent", required=True, help="the SFT artifact that all start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rl_ablation"))
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="more overrides, for all variants alike")
    arguments = parser.parse_args()
    alone = ["curate=null", "sft=null", f"model={arguments.parent}", *CHANGES, *arguments.changes]
    recipe = load_recipe(arguments.recipe, alone)
    norms = gradient_norms(recipe)
    saved = prefix_saved(recipe)
    found: dict[str, list[Outcome]] = {}
    for variant in arguments.variants:
        label = "-".join(variant.split())
        changes = [*CHANGES, *VARIANTS[variant], *arguments.changes]
        found[variant] = [
            run_stage(f"rl-ablation-{label}-{seed}", arguments.recipe, arguments.parent, seed, arguments.runs, changes)
            for seed in arguments.seeds
        ]
    facts = {
        "seeds": arguments.seeds,
        "variants": {
            variant: [asdict(replace(outcome, updates=[])) for outcome in runs] for variant, runs in found.items()
        },
        "gradient_norms": norms,
        "prefix": saved,
    }
    write(arguments.out, facts, table(found, arguments.seeds, norms, saved))


def gradient_norms(recipe: Recipe) -> list[dict[str, float]]:
    """Norm of the gradient of one update at the parent, with every group stochastic at the same step of the grid."""
    assert recipe.rlhf is not None
    algorithm = recipe.rlhf.algorithm
    steps = training_sampler(recipe.sampler, algorithm).steps
    rows = []
    for index in algorithm.candidates(steps):
        only = {"first": (index + 0.01) / steps, "last": (index + 1.01) / steps, "weight": "none"}
        with tempfile.TemporaryDirectory() as folder:
            chosen = algorithm.model_copy(update=only)
            taught = trainer(recipe, chosen, Path(folder))
            grid = taught.sampler.grid
            loudness = gradient_scale(grid[index : index + 1], grid[index + 1 : index + 2], chosen.noise_law, grid)
            norm = taught.one_update()["grad_norm"]
        rows.append({"sigma": float(grid[index]), "lambda": float(loudness), "plain": norm})
    mean = sum(1 / row["lambda"] for row in rows) / len(rows)
    return [row | {"rectified": row["plain"] / row["lambda"] / mean} for row in rows]


def prefix_saved(recipe: Recipe) -> dict[str, float]:
    """Network evaluations of an update, when a group's common way is sampled once and when it is not."""
    assert recipe.rlhf is not None
    with tempfile.TemporaryDirectory() as folder:
        taught = trainer(recipe, recipe.rlhf.algorithm, Path(folder))
        shared = taught.one_update()["nfe"]
        each = 2 if taught.sampler.guidance_scale != 1 else 1
        clips = recipe.rlhf.prompts_per_update * recipe.rlhf.group_size
    return {"shared": shared, "apart": float(clips * (taught.sampler.steps + 1) * each)}


def table(
    found: dict[str, list[Outcome]], seeds: list[int], norms: list[dict[str, float]], saved: dict[str, float]
) -> str:
    """As Markdown: mean and range of the seeds, then for each seed held-out validation, GSB against the parent, weakest
    retention and minutes."""
    lines = head("variant, mean of the seeds [lowest, highest]", "GSB overall", "validation, end")
    for variant, runs in found.items():
        gained = [outcome.gsb["overall"]["value"] for outcome in runs]
        lines.append(line(variant, over_seeds(gained), over_seeds([outcome.points[-1].score for outcome in runs])))
    axes = [f"GSB {axis}" for axis in AXES]
    lines += ["", *head("variant", "seed", "validation: start, end", *axes, "weakest retention", "minutes")]
    for variant, runs in found.items():
        for seed, outcome in zip(seeds, runs, strict=True):
            way = f"{outcome.points[0].score:.3f}, {outcome.points[-1].score:.3f}"
            cells = [*(interval(outcome.gsb[axis]) for axis in AXES), weakest(outcome.retention)]
            lines.append(line(variant, seed, way, *cells, f"{outcome.seconds / 60:.1f}"))
    lines += ["", *head("level of the trained step", "lambda", "gradient norm", "rectified")]
    for row in norms:
        norm = (f"{row[name]:.4f}" for name in ("plain", "rectified"))
        lines.append(line(f"{row['sigma']:.3f}", f"{row['lambda']:.3f}", *norm))
    lines += ["", f"Largest over smallest norm: plain {spread(norms, 'plain'):.1f}, rectified "]
    lines[-1] += f"{spread(norms, 'rectified'):.1f}."
    lines += ["", f"Network evaluations of an update: {saved['shared']:,.0f} with the shared prefix, "]
    lines[-1] += f"{saved['apart']:,.0f} when every clip goes the whole way."
    return "\n".join(lines) + "\n"


def spread(norms: list[dict[str, float]], name: str) -> float:
    """Largest over smallest."""
    values = [row[name] for row in norms]
    return max(values) / min(values)


if __name__ == "__main__":
    main()
