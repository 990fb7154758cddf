"""What the two judges promise, measured on renderings whose truth is known."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.stats import spearmanr

from reelign.miniature import judge as judge_module
from reelign.miniature import training_judge as training_judge_module
from reelign.miniature.judge import judge
from reelign.miniature.judgement import AXES, Judgement
from reelign.miniature.render import DEFECTS, MOTION_DEFECTS, VISUAL_DEFECTS, defective, render
from reelign.miniature.training_judge import training_judge
from reelign.miniature.world import ATTRIBUTES, BACKGROUNDS, COLOURS, MOTIONS, RADII, SHAPES, SPEEDS, Scene, scenes

Judge = Callable[[np.ndarray, Scene], Judgement]
JUDGES: dict[str, Judge] = {"evaluation judge": judge, "training judge": training_judge}
VALUES: dict[str, Sequence[str]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(RADII),
    "motion": tuple(motion for motion in MOTIONS if motion != "still"),
    "speed": SPEEDS,
    "background": tuple(BACKGROUNDS),
}
LEAST_DROP, LARGEST_LEAK = 0.25, 0.12
"""A defect lowers its axis by at least the one, and any other axis by at most the other."""
SHARED = {"judgement", "render", "world"}
"""What both judges may import: the type of a verdict and the description of the world, no estimator."""


@dataclass
class JudgeReport:
    """Tables as (title, header, rows) and promises as (kept, sentence)."""

    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)
    requirements: list[tuple[bool, str]] = field(default_factory=list)


def judge_report(n: int, seed: int) -> JudgeReport:
    """Judge `n` moving scenes, clean and with every planted defect, by both judges."""
    generator = np.random.default_rng(seed)
    pool = [scene for held_out in (False, True) for scene in scenes(held_out) if scene.motion != "still"]
    chosen = [pool[int(index)] for index in generator.integers(len(pool), size=n)]
    clips = {"clean": [(render(scene, generator), scene) for scene in chosen]}
    for attribute in ATTRIBUTES:
        clips[f"wrong {attribute}"] = [(render(wrong(s, attribute, generator), generator), s) for s in chosen]
    for defect in DEFECTS:
        clips[defect] = [(defective(scene, generator, defect), scene) for scene in chosen]
    report = JudgeReport()
    for name, see in JUDGES.items():
        _defects(report, name, {kind: [see(*clip) for clip in group] for kind, group in clips.items()})
    _agreement(report, chosen, generator)
    common = _estimators(judge_module) & _estimators(training_judge_module)
    report.requirements.append((not common, f"modules with estimators that both judges use: {len(common)} (0)"))
    return report


def wrong(scene: Scene, attribute: str, generator: np.random.Generator) -> Scene:
    """The scene with another value of one attribute; a moving object still moves."""
    others = [value for value in VALUES[attribute] if value != getattr(scene, attribute)]
    return replace(scene, **{attribute: others[int(generator.integers(len(others)))]})


def due_axis(kind: str) -> str:
    """The one axis that a planted defect should lower."""
    if kind.startswith("wrong "):
        return "text"
    return "visual" if kind in VISUAL_DEFECTS else "motion"


def _defects(report: JudgeReport, name: str, verdicts: dict[str, list[Judgement]]) -> None:
    means = {kind: {axis: _mean(group, axis) for axis in AXES} for kind, group in verdicts.items()}
    shown = {kind: [_share(group, attribute) for attribute in ATTRIBUTES] for kind, group in verdicts.items()}
    rows = [
        [kind, *(f"{means[kind][axis]:.3f}" for axis in AXES), *(f"{share:.2f}" for share in shown[kind])]
        for kind in verdicts
    ]
    report.tables.append((name.capitalize(), ["", *AXES, *ATTRIBUTES], rows))
    worst = min(shown["clean"])
    report.requirements.append((worst >= 0.98, f"{name}: every attribute of clean renders >= {worst:.3f} (>= 0.98)"))
    for kind in list(verdicts)[1:]:
        drops = {axis: means["clean"][axis] - means[kind][axis] for axis in AXES}
        due = due_axis(kind)
        if due == "text":
            attribute = kind.removeprefix("wrong ")
            own = shown[kind][ATTRIBUTES.index(attribute)]
            rest = min(share for other, share in zip(ATTRIBUTES, shown[kind], strict=True) if other != attribute)
            kept = own <= 0.05 and rest >= 0.9
            words = f"{attribute} passes {own:.2f} (<= 0.05), the others at least {rest:.2f} (>= 0.90)"
        else:
            kept = drops[due] >= LEAST_DROP
            words = f"lowers {due} by {drops[due]:.2f} (>= {LEAST_DROP})"
        leak = max(drop for axis, drop in drops.items() if axis != due)
        sentence = f"{name}: {kind}: {words}, any other axis by {leak:.2f} at most (<= {LARGEST_LEAK})"
        report.requirements.append((kept and leak <= LARGEST_LEAK, sentence))


def _agreement(report: JudgeReport, chosen: Sequence[Scene], generator: np.random.Generator) -> None:
    """Rank agreement over clips that are clean, defective in any strength, or of another scene."""
    scores: dict[str, list[list[float]]] = {name: [] for name in JUDGES}
    for index in range(4 * len(chosen)):
        scene = chosen[index % len(chosen)]
        shows = scene
        for attribute in ATTRIBUTES:
            if generator.random() < 0.2:
                shows = wrong(shows, attribute, generator)
        family = VISUAL_DEFECTS if generator.random() < 0.5 else MOTION_DEFECTS
        defect = family[int(generator.integers(len(family)))]
        frames = defective(shows, generator, defect, generator.uniform(0.0, 1.3))
        for name, see in JUDGES.items():
            verdict = see(frames, scene)
            scores[name].append([*verdict.scores.values(), sum(verdict.scores.values())])
    ours, theirs = (np.asarray(rows) for rows in scores.values())
    for column, axis in enumerate((*AXES, "sum of the axes")):
        found = float(spearmanr(ours[:, column], theirs[:, column])[0])  # pyright: ignore[reportArgumentType]
        report.requirements.append((found >= 0.7, f"rank agreement of the judges on {axis}: {found:.2f} (>= 0.70)"))


def _estimators(module: object) -> set[str]:
    """Modules of the miniature that a judge is built on, itself included, without those that hold no estimator."""
    tree = ast.parse(inspect.getsource(module))  # pyright: ignore[reportArgumentType]
    imported = {
        node.module.removeprefix("reelign.miniature.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("reelign.miniature.")
    }
    return imported - SHARED


def _mean(group: Sequence[Judgement], axis: str) -> float:
    return float(np.mean([verdict.scores[axis] for verdict in group]))


def _share(group: Sequence[Judgement], attribute: str) -> float:
    return float(np.mean([verdict.attributes[attribute] for verdict in group if attribute in verdict.attributes]))
