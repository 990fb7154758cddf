"""What a prompt enhancer gains in front of a generator after RLHF, and that it does no harm to full captions.

    python benchmarks/enhance_after_rlhf.py --models runs/a/rlhf/model runs/b/rlhf/model runs/c/rlhf/model \
        --enhancers runs/a/enhance runs/b/enhance runs/c/enhance

Each model on the battery of its own run and with that run's sampler, with the enhancer beside it in the list against
without; on held-out users' prompts, judged by the scene that they had in mind, and on full captions.
Writes `benchmarks/results/enhance_after_rlhf.{json,md}`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reelign.enhancer.enhancer import load_enhancer
from reelign.errors import ReelignError
from reelign.evaluate.battery import run_battery
from reelign.evaluate.gsb import compare
from reelign.models.load import enhancer_folder, load_model
from reelign.recipe import load_recipe
from reelign.terminal import quiet_libraries
from tables import AXES, head, interval, line


def main() -> None:
    """Measure each pair, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, help="RUN/rlhf/model of each seed.")
    parser.add_argument("--enhancers", nargs="+", required=True, help="An artifact with an enhancer for each.")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/enhance_after_rlhf"))
    arguments = parser.parse_args()
    quiet_libraries()
    rows = [measured(*pair) for pair in zip(arguments.models, arguments.enhancers, strict=True)]
    arguments.out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    arguments.out.with_suffix(".md").write_text(table(rows), encoding="utf-8")
    print(table(rows))


def measured(model: str, enhancer: str) -> dict[str, Any]:
    """GSB with against without, on both kinds of prompts."""
    folder = enhancer_folder(enhancer)
    if folder is None:
        raise ReelignError(f"{enhancer} carries no enhancer.")
    generator, rewriter = load_model(model), load_enhancer(str(folder))
    recipe = load_recipe(Path(model).parents[1] / "recipe.yaml")
    row: dict[str, Any] = {"model": model, "enhancer": enhancer}
    for style in ("user", "full"):
        battery = recipe.battery.model_copy(update={"style": style, "keep_clips": 0})
        without, behind = (run_battery(generator, battery, recipe.sampler, enhancer=one) for one in (None, rewriter))
        row[style] = {axis: asdict(found) for axis, found in compare(without, behind).items()}
        row[f"{style} fallback"] = sum(item.outcome.startswith("fallback") for item in behind.items) / len(behind.items)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    lines = ["**A generator after RLHF with an enhancer against the same generator without** (GSB).", ""]
    names = ["model", "enhancer", *(f"{axis}, users' prompts" for axis in AXES), "overall, full captions", "fallback"]
    lines += head(*names)
    for row in rows:
        cells = [interval(row["user"][axis]) for axis in AXES]
        cells += [interval(row["full"]["overall"]), f"{row['user fallback']:.1%}"]
        lines.append(line(row["model"], row["enhancer"], *cells))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
