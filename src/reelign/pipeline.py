"""A run: stages in order, each skipped when it is already complete, each judged against its parent, all costs written
down.

```
RUN/recipe.yaml  run.json  ledger.jsonl  ceilings.json  dataset/  base/  sft/  summary.json  report/index.html
```
A stage is complete when its `stage.json` bears the fingerprint of everything that went into it: its part of the recipe,
the identity of its inputs and the code that ran it. `kill -9` at any moment and the same command goes on.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

import reelign
from reelign.data import curate as curate_module
from reelign.data.curate import curate
from reelign.errors import ReelignError
from reelign.evaluate import battery as battery_module
from reelign.evaluate.ceilings import miniature_ceilings
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gate import Gate
from reelign.feedback.collected import collected
from reelign.feedback.vote import read_votes
from reelign.files import write_atomically
from reelign.flow import match as match_module
from reelign.flow import preference as preference_module
from reelign.judging import Judge
from reelign.models.base import CARD
from reelign.models.load import load_model
from reelign.provenance import run_facts
from reelign.recipe import CurateStage, Recipe, dump_recipe
from reelign.report.page import build_report
from reelign.rewards.recipe import with_own_reward
from reelign.stages import causal_init as causal_init_module
from reelign.stages import distill as distill_module
from reelign.stages import dpo as dpo_module
from reelign.stages import enhance as enhance_module
from reelign.stages import preferences as preferences_module
from reelign.stages import reward as reward_module
from reelign.stages import reward_data as reward_data_module
from reelign.stages import rewriting as rewriting_module
from reelign.stages import rlhf as rlhf_module
from reelign.stages import sft as sft_module
from reelign.stages import student as student_module
from reelign.stages import studio as studio_module
from reelign.stages import training as training_module
from reelign.stages import unguided as unguided_module
from reelign.stages import updates as updates_module
from reelign.stages import votes as votes_module
from reelign.stages.context import Progress, StageContext, silent
from reelign.stages.distill import run_distill
from reelign.stages.distill_recipe import DistillConfig
from reelign.stages.dpo import DpoConfig, run_dpo
from reelign.stages.enhance import run_enhance
from reelign.stages.enhance_recipe import EnhanceConfig
from reelign.stages.reward import RewardConfig, run_reward
from reelign.stages.rlhf import RlhfConfig, run_rlhf
from reelign.stages.sft import SftConfig, run_sft
from reelign.stages.votes import VotesConfig, VotesOfPeople, run_votes
from reelign.train.ledger import Ledger
from reelign.train.loop import Interrupt
from reelign.train.parallel import World

STAGES = ("sft", "dpo", "rlhf", "enhance", "distill")
"""Stages that make a model, in their order, by their key in a recipe."""
FOOTAGE = Path(__file__).parent / "miniature" / "assets" / "footage"


@dataclass(frozen=True)
class RunResult:
    """Where a finished run is and the page that shows it."""

    folder: Path
    report: Path
    summary: dict[str, Any]


def run(recipe: Recipe, progress: Progress = silent, command: str | None = None) -> RunResult:
    """Run (or continue) all stages of a recipe and build the report.

    Raises:
        ReelignError: the message says what to do; everything finished so far is kept.
    """
    recipe.folder.mkdir(parents=True, exist_ok=True)
    world = World.start()
    try:
        with Interrupt() as interrupt:
            return _Run(recipe, world, interrupt, progress).go(command or " ".join(["reelign", *sys.argv[1:]]))
    finally:
        world.stop()


@dataclass(frozen=True)
class Fitted:
    """What a stage made that is no model: where it is, and the fingerprint of all that went into it."""

    place: Path
    key: str


class _Run:
    """One pass over the stages of a recipe."""

    def __init__(self, recipe: Recipe, world: World, interrupt: Interrupt, progress: Progress) -> None:
        self.recipe, self.world, self.interrupt, self.progress = recipe, world, interrupt, progress
        self.folder = recipe.folder
        self.ledger = Ledger(self.folder / "ledger.jsonl", enabled=world.is_main)
        self.judge = Judge(recipe, world, self.ledger, self._tell)

    def go(self, command: str) -> RunResult:
        recipe = self.recipe
        names = ["base", *(name for name in STAGES if getattr(recipe, name) is not None)]
        if self.world.is_main:
            write_atomically(self.folder / "recipe.yaml", dump_recipe(recipe))
            facts = run_facts(recipe.name, recipe.seed, command, names, str(self.folder / "recipe.yaml"))
            write_atomically(self.folder / "run.json", json.dumps(facts, indent=2))
        dataset = self._curate(recipe.curate) if recipe.curate is not None else None
        self._ceilings()
        self._base()
        if recipe.sft is not None:
            self._sft(recipe.sft, dataset)
        tuned = "sft" if recipe.sft is not None else "base"
        votes = self._votes(recipe.votes, tuned) if recipe.votes is not None else None
        reward = self._reward(recipe.reward, votes) if recipe.reward is not None and votes is not None else None
        if recipe.dpo is not None and votes is not None:
            self._dpo(recipe.dpo, tuned, votes)
        if recipe.rlhf is not None:
            self._rlhf(recipe.rlhf, names[names.index("rlhf") - 1], reward)
        if recipe.enhance is not None:
            self._enhance(recipe.enhance, names[names.index("enhance") - 1])
        if recipe.distill is not None:
            teacher = next(name for name in ("rlhf", "dpo", "sft", "base") if name in names)
            self._distill(recipe.distill, names[names.index("distill") - 1], teacher)
        report = self.folder / "report" / "index.html"
        if self.world.is_main:
            self.progress("report", 0, 1, "")
            report = build_report(self.folder)
            self.progress("report", 1, 1, "")
        self.world.barrier()
        summary = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return RunResult(self.folder, report, summary)

    def _curate(self, stage: CurateStage) -> Path:
        footage = FOOTAGE if str(stage.footage) == "miniature" else stage.footage
        dataset = self.folder / "dataset"
        if self.world.is_main:
            key = _fingerprint(stage.model_dump(mode="json"), [str(footage), _listing(footage)], curate_module)
            marker = dataset / "stage.json"
            if not _complete(marker, key):
                with self.ledger.phase("curate") as cost:
                    result = curate(
                        footage, dataset, stage.config, lambda done, total: self._tell("curate", done, total)
                    )
                    cost.clips = result.kept
                write_atomically(marker, json.dumps({"name": "curate", "fingerprint": key}))
        self.world.barrier()
        return dataset

    def _ceilings(self) -> None:
        """What clean data and the autoencoder alone reach on the battery; only the miniature's judge can tell."""
        path = self.folder / "ceilings.json"
        if self.recipe.battery.judge == "miniature" and self.world.is_main and not path.exists():
            with self.ledger.phase("evaluate/ceilings"):
                model = load_model(self.recipe.model, dtype=self.recipe.dtype, device=self.world.device)
                write_atomically(path, json.dumps(miniature_ceilings(model, self.recipe.battery), indent=2))
        self.world.barrier()

    def _base(self) -> None:
        battery, sampler = self.recipe.battery, self.recipe.sampler
        parts = {"battery": battery.model_dump(mode="json"), "sampler": sampler.model_dump(mode="json")}
        key = _fingerprint(parts, [self.recipe.model], battery_module)
        self._stage("base", "Base model", None, key, lambda folder: self.recipe.model)

    def _sft(self, config: SftConfig, dataset: Path | None) -> None:
        inputs = [self.recipe.model] + ([_digest(dataset / "manifest.parquet")] if dataset else [])
        key = self._key(config, inputs, sft_module)
        self._stage(
            "sft",
            "Supervised fine-tuning",
            "base",
            key,
            lambda folder: str(run_sft(self._context(folder, self.recipe.model, dataset), config)),
        )

    def _votes(self, config: VotesConfig, parent: str) -> Fitted:
        """Votes of people, and of simulated raters on clips of the parent."""
        made = json.loads((self.folder / parent / "stage.json").read_text(encoding="utf-8"))
        files = [_identity(source.path) for source in config.sources if isinstance(source, VotesOfPeople)]
        key = self._key(config, [made["fingerprint"], *files], votes_module)
        return self._fit("votes", key, lambda folder: run_votes(self._context(folder, made["artifact"], None), config))

    def _reward(self, config: RewardConfig, votes: Fitted) -> Fitted:
        """A reward fitted to the votes."""
        key = self._key(config, [votes.key], reward_module, reward_data_module, updates_module)
        parent = self.recipe.model
        return self._fit(
            "reward",
            key,
            lambda folder: run_reward(self._context(folder, parent, None), config, read_votes(votes.place)),
        )

    def _fit(self, name: str, key: str, make: Callable[[Path], Path]) -> Fitted:
        """Make what is no model: it has no battery and no gate."""
        folder = self.folder / name
        marker = folder / "stage.json"
        if not _complete(marker, key):
            if self.world.is_main:
                _begin(folder, key)
            self.world.barrier()
            place = make(folder)
            if self.world.is_main:
                facts = {"name": name, "fingerprint": key, "artifact": str(place)}
                write_atomically(marker, json.dumps(facts, indent=2))
            self.world.barrier()
        return Fitted(Path(json.loads(marker.read_text(encoding="utf-8"))["artifact"]), key)

    def _dpo(self, config: DpoConfig, parent: str, votes: Fitted) -> None:
        made = json.loads((self.folder / parent / "stage.json").read_text(encoding="utf-8"))
        code = (dpo_module, preferences_module, training_module, updates_module, preference_module)
        key = self._key(config, [made["fingerprint"], votes.key], *code)
        self._stage(
            "dpo",
            "Preference optimisation",
            parent,
            key,
            lambda folder: str(run_dpo(self._context(folder, made["artifact"], None), config, read_votes(votes.place))),
        )

    def _rlhf(self, config: RlhfConfig, parent: str, reward: Fitted | None) -> None:
        made = json.loads((self.folder / parent / "stage.json").read_text(encoding="utf-8"))
        inputs = [made["fingerprint"]]
        if reward is not None:
            config = config.model_copy(update={"rewards": with_own_reward(config.rewards, reward.place)})
            inputs.append(reward.key)
        key = self._key(config, inputs, rlhf_module, training_module, updates_module)
        self._stage(
            "rlhf",
            "Reinforcement learning",
            parent,
            key,
            lambda folder: str(run_rlhf(self._context(folder, made["artifact"], None), config)),
        )

    def _enhance(self, config: EnhanceConfig, parent: str) -> None:
        made = json.loads((self.folder / parent / "stage.json").read_text(encoding="utf-8"))
        key = self._key(config, [made["fingerprint"]], enhance_module, rewriting_module, studio_module)
        self._stage(
            "enhance",
            "Prompt enhancement",
            parent,
            key,
            lambda folder: str(run_enhance(self._context(folder, made["artifact"], None), config)),
            self.judge.enhanced,
        )

    def _distill(self, config: DistillConfig, before: str, teacher: str) -> None:
        """Distil what the stage `before` left. An enhancer changes no generator: the student is compared with the stage
        that made the generator."""
        made = json.loads((self.folder / before / "stage.json").read_text(encoding="utf-8"))
        code = (distill_module, student_module, updates_module, unguided_module, causal_init_module, match_module)
        key = self._key(config, [made["fingerprint"]], *code)
        self._stage(
            "distill",
            "Distillation",
            teacher,
            key,
            lambda folder: str(run_distill(self._context(folder, made["artifact"], None), config)),
            self.judge.distilled,
        )

    def _key(self, config: BaseModel, inputs: list[str], *code: ModuleType) -> str:
        """Fingerprint of a training stage."""
        parts = {
            "stage": config.model_dump(mode="json"),
            "seed": self.recipe.seed,
            "dtype": self.recipe.dtype,
            "battery": self.recipe.battery.model_dump(mode="json"),
            "sampler": self.recipe.sampler.model_dump(mode="json"),
        }
        return _fingerprint(parts, inputs, *code)

    def _context(self, folder: Path, parent: str, dataset: Path | None) -> StageContext:
        return StageContext(
            folder=folder,
            parent=parent,
            dataset=dataset,
            seed=self.recipe.seed,
            dtype=self.recipe.dtype,
            sampler=self.recipe.sampler,
            battery=self.recipe.battery,
            world=self.world,
            ledger=self.ledger,
            interrupt=self.interrupt,
            progress=self.progress,
        )

    def _stage(
        self,
        name: str,
        title: str,
        parent: str | None,
        key: str,
        make: Callable[[Path], str],
        judge: Callable[[str, str, Path, str | None], tuple[Evaluation, Gate]] | None = None,
    ) -> None:
        """Make a stage's artifact, run the battery on it and compare it with its parent."""
        folder = self.folder / name
        marker = folder / "stage.json"
        if _complete(marker, key):
            self.progress(name, 1, 1, "already complete")
            return
        if self.world.is_main:
            _begin(folder, key)
        self.world.barrier()
        artifact = make(folder)
        evaluation, verdict = (judge or self.judge.plain)(name, artifact, folder, parent)
        if self.world.is_main:
            facts = {
                "name": name,
                "title": title,
                "artifact": artifact,
                "parent": parent,
                "fingerprint": key,
                "gate": {"passed": verdict.passed, "reasons": list(verdict.reasons)},
            }
            if parent is not None:
                _sign(Path(artifact), facts, dump_recipe(self.recipe), evaluation)
            write_atomically(marker, json.dumps(facts, indent=2))
        self.world.barrier()

    def _tell(self, what: str, done: int, total: int) -> None:
        if self.interrupt.requested:
            raise ReelignError("stopped as asked; the same command goes on from here.")
        self.progress(what, done, total, "")


def _begin(folder: Path, key: str) -> None:
    """Make a stage's folder; what another recipe or other code left there is moved aside, never continued."""
    mark = folder / "fingerprint"
    if folder.exists() and (not mark.exists() or mark.read_text(encoding="utf-8") != key):
        number = 1 + len(list(folder.parent.glob(f"{folder.name}.before-*")))
        folder.rename(folder.with_name(f"{folder.name}.before-{number}"))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(mark, key)


def _sign(artifact: Path, facts: dict[str, Any], recipe: str, evaluation: Evaluation) -> None:
    """Add lineage, recipe and scores to the artifact's card."""
    card = artifact / CARD
    signed = json.loads(card.read_text(encoding="utf-8")) | {
        "stage": facts["name"],
        "parent": facts["parent"],
        "recipe_sha256": hashlib.sha256(recipe.encode()).hexdigest(),
        "gate": facts["gate"],
        "scores": evaluation.means(),
    }
    write_atomically(card, json.dumps(signed, indent=2))


def _fingerprint(parts: dict[str, Any], inputs: list[str], *code: ModuleType) -> str:
    """SHA-256 over a stage's recipe, its inputs and the source that runs it."""
    source = [inspect.getsource(module) for module in code]
    text = json.dumps([reelign.__version__, parts, inputs, source], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _complete(marker: Path, key: str) -> bool:
    if not marker.exists():
        return False
    return json.loads(marker.read_text(encoding="utf-8")).get("fingerprint") == key


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _identity(place: Path) -> str:
    """Of votes: a file by its content, a study by what it holds."""
    return "\n".join(map(str, collected(place))) if place.is_dir() else _digest(place)


def _listing(folder: Path) -> str:
    """Names, sizes and times of all files of a folder: footage that changed is curated again."""
    if not folder.is_dir():
        raise ReelignError(f"curate.footage: there is no folder {folder}.")
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return json.dumps([(str(p.relative_to(folder)), p.stat().st_size, int(p.stat().st_mtime)) for p in found])
