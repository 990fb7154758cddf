"""How the artifact of each stage of a run is judged: on the run's battery, against its parent, with what it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from reelign.data.clip import write_clip
from reelign.enhancer.enhancer import load_enhancer
from reelign.evaluate.bargain import Offer, bargains, cheaper_teachers, evaluations, prices
from reelign.evaluate.battery import BatteryConfig, run_battery
from reelign.evaluate.drift import drift
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gate import Gate, gate
from reelign.evaluate.gsb import OVERALL, compare
from reelign.files import write_atomically
from reelign.models.base import VideoModel
from reelign.models.load import enhancer_folder, load_model
from reelign.recipe import Recipe
from reelign.report.summary import BARGAIN, DRIFT, WITHOUT
from reelign.sampling.sample import SampleConfig, own_sampler
from reelign.stages.distill_recipe import CAUSAL, PARTS
from reelign.train.ledger import Ledger
from reelign.train.parallel import World

Told = Callable[[str, int, int], None]
"""What is being judged, clips done, clips in all."""


class Judge:
    """Judges artifacts of one run; `told` may raise to stop."""

    def __init__(self, recipe: Recipe, world: World, ledger: Ledger, told: Told) -> None:
        self.recipe, self.world, self.ledger, self.told = recipe, world, ledger, told

    def plain(self, name: str, artifact: str, folder: Path, parent: str | None) -> tuple[Evaluation, Gate]:
        """The recipe's battery on an artifact, and the gate against its parent on the same."""
        evaluation = self.evaluate(name, artifact, self.recipe.battery, folder)
        if parent is None:
            return evaluation, Gate(True, ())
        return evaluation, gate(self._of(parent), evaluation)

    def enhanced(self, name: str, artifact: str, folder: Path, parent: str | None) -> tuple[Evaluation, Gate]:
        """What the enhancer gains on the prompts that users type, and that it does no harm to full captions.

        The generator is the same with and without it, so both sides are judged here.
        """
        own = self.recipe.battery
        users = own.model_copy(update={"style": "user"}) if own.judge == "miniature" else own
        plain = self.evaluate(f"{name}/without", artifact, users, folder / WITHOUT)
        evaluation = self.evaluate(name, artifact, users, folder, enhanced=True)
        reasons, figures = list(gate(plain, evaluation).reasons), []
        if own != users:
            full = self.evaluate(f"{name}/captions", artifact, own, folder / "captions", enhanced=True)
            before = self._of(str(parent))
            reasons += [f"full captions: {reason}" for reason in gate(before, full).reasons]
            found = compare(before, full)[OVERALL]
            label = "Overall GSB on full captions, with the enhancer against without"
            figures.append({"label": label, "note": "", "unit": "", **asdict(found)})
        if self.world.is_main:
            write_atomically(folder / "extra.json", json.dumps({"figures": figures}, indent=2))
        return evaluation, Gate(not reasons, tuple(reasons))

    def distilled(self, name: str, artifact: str, folder: Path, parent: str | None) -> tuple[Evaluation, Gate]:
        """The student against its teacher in deployment and against the teacher run as cheaply, what clips cost, and
        whether a long stream gets worse."""
        evaluation = self.evaluate(name, artifact, self.recipe.battery, folder)
        before = self._of(str(parent))
        if self.world.is_main:
            with self.ledger.phase(f"{name}/bargain"):
                made = json.loads((self.recipe.folder / str(parent) / "stage.json").read_text(encoding="utf-8"))
                self._bargain(folder, artifact, made["artifact"], before, evaluation)
        self.world.barrier()
        return evaluation, gate(before, evaluation)

    def evaluate(
        self, name: str, artifact: str, battery: BatteryConfig, folder: Path, enhanced: bool = False
    ) -> Evaluation:
        """Run a battery, `enhanced` through the enhancer that the artifact carries; `folder` gets what it found."""
        with self.ledger.phase(f"{name}/evaluate") as cost:
            model = self._load(artifact)
            rewriter = enhancer_folder(artifact) if enhanced else None
            evaluation = run_battery(
                model,
                battery,
                self._sampler(model),
                "test",
                folder if self.world.is_main else None,
                lambda done, total: self.told(f"{name}: battery", done, total),
                enhancer=load_enhancer(str(rewriter), device=self.world.device) if rewriter else None,
            )
            cost.nfe, cost.clips = evaluation.nfe, len(evaluation.items)
        if self.world.is_main:
            folder.mkdir(parents=True, exist_ok=True)
            evaluation.save(folder / "evaluation.json")
        return evaluation

    def _bargain(self, folder: Path, artifact: str, parent: str, before: Evaluation, after: Evaluation) -> None:
        """Write what each way of making clips gives and costs, and how a long stream fares."""
        battery, student = self.recipe.battery.model_copy(update={"keep_clips": 0}), self._load(artifact)
        teacher = self._load(parent)
        offers = [Offer("teacher", teacher, self.recipe.sampler), Offer("student", student, self._sampler(student))]
        whole_clips = [folder / part.replace("_", "-") / "model" for part in reversed(PARTS) if part not in CAUSAL]
        before_it = next((place for place in whole_clips if place.exists()), None)
        if student.causal is not None and before_it is not None:
            model = self._load(str(before_it))
            offers.insert(1, Offer("student that sees all frames", model, self._sampler(model)))
        offers += cheaper_teachers(teacher, self.recipe.sampler, evaluations(student, offers[-1].sampler, battery))
        found = {"teacher": before, "student": after}
        for offer in offers:
            if offer.name not in found:
                found[offer.name] = run_battery(
                    offer.model,
                    battery,
                    offer.sampler,
                    progress=lambda done, total, name=offer.name: self.told(f"distill: {name}", done, total),
                )
        ordered = {offer.name: found[offer.name] for offer in offers}
        rows = bargains(before, ordered, prices(offers, battery), "student")
        write_atomically(folder / BARGAIN, json.dumps({"rows": rows}, indent=1))
        if student.causal is not None and battery.judge == "miniature":
            self._drift(folder, student, battery)

    def _drift(self, folder: Path, student: VideoModel, battery: BatteryConfig) -> None:
        found, film = drift(student, battery, self._sampler(student), partial(self.told, "distill: long rollout"))
        write_clip(folder / "samples" / "long.mp4", film, battery.fps)
        write_atomically(folder / DRIFT, json.dumps(found, indent=1))

    def _of(self, stage: str) -> Evaluation:
        return Evaluation.load(self.recipe.folder / stage / "evaluation.json")

    def _load(self, artifact: str) -> VideoModel:
        return load_model(artifact, dtype=self.recipe.dtype, device=self.world.device)

    def _sampler(self, model: VideoModel) -> SampleConfig:
        return own_sampler(model) or self.recipe.sampler
