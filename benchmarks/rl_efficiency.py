"""All RL presets from one parent at the same held-out validation: score against seconds and against forward passes.

    python benchmarks/rl_efficiency.py --parent runs/demo/sft/model --seeds 0 1 2

Every preset runs the recipe's own `rlhf` stage with its own `rlhf.algorithm.preset`, without early stop, and for fewer
updates where an update is dearer. The recipe's optimiser is that of `reelign-nft`; the policy gradients have Adam as it
is usual and the rate that served them best, and exposure weighs little for all (`rl_runs.LIGHT`).
Then what one update of each costs when all sample equal clips in 20 steps without guidance, in this process; `--costs`
measures that alone, and keeps the rest of what was written before.
Writes `rl_efficiency.json`, `.md` and `.png`. A run that is complete under `--runs` is read, not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from reelign.recipe import Recipe, load_recipe
from reelign.stages.algorithm import Algorithm
from rl_runs import POLICY_GRADIENT, TO_THE_END, Outcome, Point, forwards, run_stage, trainer, write
from tables import head, line, over_seeds

OURS = ("reelign", "reelign-nft")
BUDGETS = {
    "reelign": 20,
    "flash-grpo": 16,
    "flow-grpo": 16,
    "dance-grpo": 12,
    "mix-grpo": 12,
    "diffusion-nft": 16,
    "reelign-nft": 12,
}
"""Updates of each preset."""
EVERY = 4
"""Updates between validations."""
EQUAL = {"prompts_per_update": 8, "group_size": 8}
"""The clips of an update, where its cost is measured: half the recipe's."""
TURNS = 5
"""Updates of each preset in that measurement, after one to warm up."""
MEASURED = ("seconds", "forwards", "score")
"""Of a validation, what is averaged over the seeds."""
CHANGES = [*TO_THE_END, f"rlhf.validate_every={EVERY}"]


def main() -> None:
    """Run, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=Path("recipes/miniature-rlhf.yaml"))
    parser.add_argument("--parent", required=True, help="the SFT artifact that all start from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--presets", nargs="+", default=list(BUDGETS), choices=list(BUDGETS))
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rl_efficiency"))
    parser.add_argument("--set", dest="changes", nargs="*", default=[], help="more overrides, for all presets alike")
    parser.add_argument("--costs", action="store_true", help="measure only what an update costs")
    arguments = parser.parse_args()
    alone = ["curate=null", "sft=null", f"model={arguments.parent}", *arguments.changes]
    costs = update_costs(load_recipe(arguments.recipe, alone), arguments.presets)
    if arguments.costs:
        facts = json.loads(arguments.out.with_suffix(".json").read_text(encoding="utf-8"))
        facts["update_at_equal_clips"] = costs
        write(arguments.out, facts, table(facts["presets"], facts["against_flow_grpo"]) + cost_table(costs))
        return
    found: dict[str, list[Outcome]] = {}
    for preset in arguments.presets:
        own = [] if preset.endswith("-nft") else POLICY_GRADIENT
        own = [*own, f"rlhf.algorithm.preset={preset}", f"rlhf.updates={BUDGETS[preset]}"]
        changes = [*CHANGES, *own, *arguments.changes]
        found[preset] = [
            run_stage(
                f"rl-efficiency-{preset}-{seed}", arguments.recipe, arguments.parent, seed, arguments.runs, changes
            )
            for seed in arguments.seeds
        ]
    rows = {preset: described(runs) for preset, runs in found.items()}
    facts = {
        "seeds": arguments.seeds,
        "update_at_equal_clips": costs,
        "presets": rows,
        "against_flow_grpo": {ours: overtaken(found, arguments.seeds, ours) for ours in OURS},
        "runs": {
            preset: [[asdict(point) for point in outcome.points] for outcome in runs] for preset, runs in found.items()
        },
    }
    write(arguments.out, facts, table(rows, facts["against_flow_grpo"]) + cost_table(costs))
    draw(found, arguments.out.with_suffix(".png"))


def described(runs: list[Outcome]) -> dict[str, object]:
    """A preset in numbers: cost of an update (median), scores at the start, at best and at the end, and what its best
    is on the test prompts against the parent."""
    updates = [update for outcome in runs for update in outcome.updates]
    seconds = [sum(v for k, v in update.items() if k.startswith("seconds/")) for update in updates]
    return {
        "updates": len(runs[0].updates),
        "seconds_per_update": float(np.median(seconds)),
        "forwards_per_update": float(np.mean([forwards(update) for update in updates])),
        "start": [outcome.points[0].score for outcome in runs],
        "best": [max(point.score for point in outcome.points) for outcome in runs],
        "end": [outcome.points[-1].score for outcome in runs],
        "gsb": [outcome.gsb["overall"]["value"] for outcome in runs],
    }


def overtaken(found: dict[str, list[Outcome]], seeds: list[int], preset: str) -> dict[str, dict[str, float | None]]:
    """Where a trained flow-grpo is best, and the first validation of a preset that is as good (None if none is): for
    the mean over the seeds, and for each seed, where the best of a few validations is partly luck."""
    if not {preset, "flow-grpo"} <= found.keys():
        return {}
    rows = {"mean of the seeds": reached(mean_points(found[preset]), mean_points(found["flow-grpo"]))}
    for seed, ours, theirs in zip(seeds, found[preset], found["flow-grpo"], strict=True):
        rows[f"seed {seed}"] = reached(ours.points, theirs.points)
    return rows


def reached(ours: list[Point], theirs: list[Point]) -> dict[str, float | None]:
    """The best of their validations after the first, which is the parent's, and what of its cost ours need for it."""
    best = max(theirs[1:], key=lambda point: point.score)
    there = next((point for point in ours[1:] if point.score >= best.score), None)
    return {
        "best_of_flow_grpo": best.score,
        "forwards_of_flow_grpo": best.forwards,
        "share_of_forwards": there.forwards / best.forwards if there else None,
        "share_of_seconds": there.seconds / best.seconds if there else None,
    }


def mean_points(runs: list[Outcome]) -> list[Point]:
    """Validations of some runs of a preset, averaged."""
    return [
        Point(together[0].update, *(float(np.mean([getattr(point, name) for point in together])) for name in MEASURED))
        for together in zip(*(outcome.points for outcome in runs), strict=True)
    ]


def update_costs(recipe: Recipe, presets: list[str]) -> dict[str, dict[str, float]]:
    """An update of `EQUAL` clips in 20 unguided steps, without loading and validation: median seconds and forwards.

    The presets take turns in one process, so what slows the machine for a while slows all of them.
    """
    assert recipe.rlhf is not None
    change: dict[str, object] = {"rollout_steps": 20, "guidance": "none"}
    config = recipe.rlhf.model_copy(update=EQUAL)
    recipe = recipe.model_copy(update={"rlhf": config})
    seconds: dict[str, list[float]] = {preset: [] for preset in presets}
    passes: dict[str, list[float]] = {preset: [] for preset in presets}
    with tempfile.TemporaryDirectory() as folder:
        ready = {
            preset: trainer(recipe, Algorithm.model_validate(change | {"preset": preset}), Path(folder) / preset)
            for preset in presets
        }
        for turn in range(1 + TURNS):
            for preset, taught in ready.items():
                start = time.perf_counter()
                update = taught.one_update()
                taught.update += 1
                if turn:  # the first is warm-up
                    seconds[preset].append(time.perf_counter() - start)
                    passes[preset].append(forwards(update) / taught.clips_an_update)
    return {
        preset: {"seconds": float(np.median(seconds[preset])), "forwards_a_clip": float(np.mean(passes[preset]))}
        for preset in presets
    }


def cost_table(costs: dict[str, dict[str, float]]) -> str:
    """As Markdown, beside flow-grpo's."""
    lines = ["", *head("preset", "forwards a clip", "seconds", "of flow-grpo's")]
    for preset, cost in costs.items():
        share = f"{cost['seconds'] / costs['flow-grpo']['seconds']:.2f}" if "flow-grpo" in costs else ""
        lines.append(line(preset, f"{cost['forwards_a_clip']:.1f}", f"{cost['seconds']:.2f}", share))
    return "\n".join(lines) + "\n"


def table(rows: dict[str, dict], against: dict[str, dict[str, dict]]) -> str:
    """As Markdown; mean [lowest, highest] over seeds."""
    lines = head("preset", "updates", "seconds an update", "forwards an update", "start", "best", "end", "GSB, best")
    for preset, row in rows.items():
        scores = [over_seeds(row[name]) for name in ("start", "best", "end", "gsb")]
        cost = (f"{row['seconds_per_update']:.1f}", f"{row['forwards_per_update']:,.0f}")
        lines.append(line(preset, row["updates"], *cost, *scores))
    lines += ["", *head("who reaches flow-grpo's best", "", "its best", "share of its forwards", "of its seconds")]
    for ours, found in against.items():
        for runs, row in found.items():
            shares = [row["share_of_forwards"], row["share_of_seconds"]]
            cells = ["not reached" if share is None else f"{share:.2f}" for share in shares]
            lines.append(line(ours, runs, f"{row['best_of_flow_grpo']:.4f}", *cells))
    return "\n".join(lines) + "\n"


def draw(found: dict[str, list[Outcome]], path: Path) -> None:
    """Held-out score over seconds and over forwards, each seed a thin line, their mean a thick one."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), sharey=True, layout="constrained")
    for color, (preset, runs) in zip(plt.get_cmap("tab10").colors, found.items(), strict=False):  # pyright: ignore
        for axis, name in zip(axes, ("seconds", "forwards"), strict=True):
            across = [[getattr(point, name) for point in outcome.points] for outcome in runs]
            up = [[point.score for point in outcome.points] for outcome in runs]
            for x, y in zip(across, up, strict=True):
                axis.plot(x, y, color=color, alpha=0.3, linewidth=0.8)
            axis.plot(np.mean(across, 0), np.mean(up, 0), color=color, linewidth=2, label=preset)
    axes[0].set(xlabel="seconds of training", ylabel="held-out judge, mean of the axes")
    axes[1].set(xlabel="forward passes of one clip (a trained one counts three)")
    axes[0].legend(frameon=False)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
