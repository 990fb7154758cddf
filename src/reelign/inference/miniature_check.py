"""What the miniature promises, measured: `reelign miniature check`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from reelign.errors import ReelignError
from reelign.evaluate.battery import BatteryConfig, run_battery, tasks
from reelign.evaluate.ceilings import miniature_ceilings
from reelign.evaluate.evaluation import Evaluation
from reelign.inference.evaluate import TextTable
from reelign.miniature.build import GUIDANCE_SCALE
from reelign.miniature.check_judges import judge_report
from reelign.miniature.judge import judge
from reelign.miniature.judgement import AXES
from reelign.miniature.render import render
from reelign.miniature.world import ATTRIBUTES
from reelign.models.base import VideoModel
from reelign.models.load import load_model
from reelign.sampling.sample import SampleConfig

Progress = Callable[[str, int, int, str], None]
GUIDED = SampleConfig(steps=20, shift=3.0, solver="unipc", guidance_scale=GUIDANCE_SCALE)
PLAIN = GUIDED.model_copy(update={"guidance_scale": 1.0})
MIB = 2**20


@dataclass(frozen=True)
class Requirement:
    """One promise: whether it holds, in a sentence with the numbers."""

    passed: bool
    sentence: str


@dataclass
class Check:
    """Everything that was measured."""

    tables: list[TextTable] = field(default_factory=list)
    requirements: list[Requirement] = field(default_factory=list)

    def require(self, passed: bool, sentence: str) -> None:
        """Note a promise."""
        self.requirements.append(Requirement(bool(passed), sentence))


def check(capacity: Path | None, sft: str | None, count: int, progress: Progress) -> Check:
    """Measure judges, codec, base and, when given, the capacity model and an SFT artifact."""
    found = Check()
    _judges(found, progress)
    base = load_model("miniature")
    _codec(found, base, count)
    battery = BatteryConfig(count=count, keep_clips=0)
    rows = {
        "base, guided": _run("base", base, battery, GUIDED, progress),
        "base, no guidance": _run("base, no guidance", base, battery, PLAIN, progress),
        "base, users' prompts": _run(
            "base, users", base, battery.model_copy(update={"style": "user"}), GUIDED, progress
        ),
    }
    _base(found, rows)
    if sft is not None:
        model = load_model(sft)
        rows["SFT, guided"] = _run("SFT", model, battery, GUIDED, progress)
        rows["SFT, users' prompts"] = _run(
            "SFT, users", model, battery.model_copy(update={"style": "user"}), GUIDED, progress
        )
    if capacity is not None:
        rows["clean data only"] = _run("capacity", load_model(str(capacity)), battery, GUIDED, progress)
        _capacity(found, rows["clean data only"])
    ceilings = miniature_ceilings(base, battery)
    if sft is not None:
        _headroom(found, rows, ceilings["codec"])
    _scores_table(found, rows, ceilings)
    _size(found)
    return found


def _judges(found: Check, progress: Progress) -> None:
    progress("judges", 0, 1, "")
    report = judge_report(n=60, seed=0)
    found.tables += [TextTable(*table) for table in report.tables]
    for passed, sentence in report.requirements:
        found.require(passed, sentence)
    progress("judges", 1, 1, "")


def _codec(found: Check, model: VideoModel, count: int) -> None:
    generator = np.random.default_rng(1)
    todo = [task for task in tasks(BatteryConfig(count=count)) if task.scene is not None]
    clean = np.stack([render(task.scene, generator) for task in todo if task.scene is not None])
    with torch.no_grad():
        decoded = np.concatenate(
            [
                model.decode(model.encode_video(torch.from_numpy(clean[start : start + 16]))).cpu().numpy()
                for start in range(0, len(clean), 16)
            ]
        )
    error = np.mean((clean.astype(np.float64) - decoded) ** 2)
    psnr = float(10 * np.log10(255**2 / error))
    verdicts = [judge(video, task.scene, task.stated) for video, task in zip(decoded, todo, strict=True) if task.scene]
    text = float(np.mean([verdict.text for verdict in verdicts]))
    found.require(psnr >= 30, f"the autoencoder reconstructs held-out clean videos at {psnr:.1f} dB (>= 30)")
    found.require(text >= 0.97, f"judged attributes of the reconstructions: {text:.3f} (>= 0.97)")


def _run(name: str, model: VideoModel, battery: BatteryConfig, sampler: SampleConfig, progress: Progress) -> Evaluation:
    return run_battery(model, battery, sampler, progress=lambda done, total: progress(name, done, total, ""))


def _base(found: Check, rows: dict[str, Evaluation]) -> None:
    guided, plain, users = (rows[key].means()["text"] for key in list(rows)[:3])
    found.require(0.60 <= guided <= 0.85, f"base, full captions, guided: text {guided:.3f} (0.60 to 0.85)")
    found.require(plain <= guided - 0.05, f"base without guidance: text {plain:.3f} (clearly below {guided:.3f})")
    found.require(users <= guided - 0.05, f"base, users' prompts: text {users:.3f} (clearly below {guided:.3f})")


def _capacity(found: Check, evaluation: Evaluation) -> None:
    accuracy = attribute_accuracy(evaluation)
    mean = float(np.mean(list(accuracy.values())))
    weakest = min(accuracy, key=lambda name: accuracy[name])
    found.require(mean >= 0.93, f"the architecture on clean data: mean attribute accuracy {mean:.3f} (>= 0.93)")
    found.require(accuracy[weakest] >= 0.85, f"its weakest attribute, {weakest}: {accuracy[weakest]:.3f} (>= 0.85)")


def _headroom(found: Check, rows: dict[str, Evaluation], ceiling: dict[str, float]) -> None:
    pairs = [
        ("visual", "base, guided", "SFT, guided", "visual"),
        ("motion", "base, guided", "SFT, guided", "motion"),
        ("text on users' prompts", "base, users' prompts", "SFT, users' prompts", "text"),
    ]
    for label, before, after, axis in pairs:
        base, sft, top = rows[before].means()[axis], rows[after].means()[axis], ceiling[axis]
        left = (top - sft) / max(top - base, 1e-6)
        found.require(
            left >= 1 / 3, f"headroom after SFT on {label}: {left:.0%} of {top - base:.3f} is left (>= a third)"
        )


def _scores_table(found: Check, rows: dict[str, Evaluation], ceilings: dict[str, dict[str, float]]) -> None:
    header = ["", *AXES, *ATTRIBUTES]
    table = [
        [name, *(f"{scores[axis]:.3f}" for axis in AXES), *("" for _ in ATTRIBUTES)]
        for name, scores in ceilings.items()
    ]
    for name, evaluation in rows.items():
        means, accuracy = evaluation.means(), attribute_accuracy(evaluation)
        table.append([name, *(f"{means[axis]:.3f}" for axis in AXES), *(f"{accuracy[a]:.2f}" for a in ATTRIBUTES)])
    found.tables.append(TextTable("Held-out battery", header, table))


def attribute_accuracy(evaluation: Evaluation) -> dict[str, float]:
    """Share of the clips that show each attribute, over the clips whose prompt states it."""
    names: Sequence[str] = ATTRIBUTES
    return {
        name: float(np.mean([item.attributes[name] for item in evaluation.items if name in item.attributes]))
        for name in names
    }


def _size(found: Check) -> None:
    assets = Path(__file__).parents[1] / "miniature" / "assets"
    if not assets.is_dir():
        raise ReelignError(f"the miniature's files are missing from {assets}; reinstall the package.")
    size = sum(path.stat().st_size for path in assets.rglob("*") if path.is_file()) / MIB
    strange = [path.name for path in assets.rglob("*") if path.suffix in {".bin", ".pt", ".pth", ".pkl", ".ckpt"}]
    found.require(size <= 20, f"package data: {size:.1f} MiB (<= 20)")
    found.require(not strange, "weights are safetensors only" if not strange else f"not safetensors: {strange}")
