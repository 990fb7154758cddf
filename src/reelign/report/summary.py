"""`summary.json` of a run: every number of the report, for programs. Documented in docs/summary.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from reelign.data.manifest import DROPPED, MANIFEST, read_dropped
from reelign.errors import ReelignError
from reelign.evaluate.evaluation import Evaluation
from reelign.evaluate.gsb import OVERALL, compare, retention, verdicts
from reelign.evaluate.statistics import bootstrap_mean
from reelign.report.feedback import reward_of, votes_of
from reelign.report.proxy import proxy_of
from reelign.train.ledger import Ledger

WITHOUT = "without"
"""Folder of a stage that adds something to its parent: the same model on the same battery without it."""
PARTS = ("unguided", "few-step", "initialise", "self-forcing")
"""Folders of the parts of a distillation."""
BARGAIN, DRIFT = "bargain.json", "drift.json"
"""Files of a distillation: quality against cost of each way to make clips, and of the parts of a long rollout."""


@dataclass(frozen=True)
class Stage:
    """A stage as found on disk.

    Attributes:
        name: also its folder in the run.
        folder: `RUN/NAME`.
        facts: its `stage.json`, empty until the stage is complete.
        evaluation: what the battery found; None when the stage did not get that far.
        without: what it found without what the stage adds, of a stage that is judged so and not against its parent.
    """

    name: str
    folder: Path
    facts: dict[str, Any]
    evaluation: Evaluation | None
    without: Evaluation | None = None

    @property
    def title(self) -> str:
        """What people call it."""
        return self.facts.get("title", self.name)


def read_stages(run: Path) -> list[Stage]:
    """The stages that `run.json` names, in order; those that have not begun are among them.

    Raises:
        ReelignError: the folder is no run, or a file of it is damaged.
    """
    return [_read_stage(run / name) for name in _run_facts(run)["stages"]]


def summarise(run: Path) -> dict[str, Any]:
    """All numbers of a run, finished or not.

    Raises:
        ReelignError: the folder is no run, or a file of it is damaged.
    """
    facts, stages = _run_facts(run), read_stages(run)
    ledger = Ledger(run / "ledger.jsonl").read()
    ceilings = _read(run / "ceilings.json") if (run / "ceilings.json").exists() else {}
    by_name = {stage.name: stage for stage in stages}
    rows = [_stage(stage, by_name.get(stage.facts.get("parent") or ""), ledger) for stage in stages]
    for row in rows:
        first = rows[0] if row["without"] is None else row["without"]
        row["headroom"] = _headroom(row["scores"], first["scores"], ceilings.get("codec", {}))
    cost = _cost(ledger)
    return {
        "run": facts,
        "headline": _headline(stages, rows, cost),
        "stages": rows,
        "ceilings": ceilings,
        "dataset": _dataset(run / "dataset"),
        "votes": _with_cost(votes_of(run / "votes"), "votes", ledger),
        "reward": _with_cost(reward_of(run / "reward"), "reward", ledger),
        "cost": cost,
        "ledger": ledger,
    }


def _run_facts(run: Path) -> dict[str, Any]:
    if not (run / "run.json").exists():
        raise ReelignError(f"{run} is no run: run.json is missing. A run is made with: reelign run recipes/demo.yaml")
    return _read(run / "run.json")


def _read_stage(folder: Path) -> Stage:
    marker, judged = folder / "stage.json", folder / "evaluation.json"
    without = folder / WITHOUT / "evaluation.json"
    facts = _read(marker) if marker.exists() else {}
    return Stage(folder.name, folder, facts, *(Evaluation.load(p) if p.exists() else None for p in (judged, without)))


def _stage(stage: Stage, parent: Stage | None, ledger: Sequence[dict[str, Any]]) -> dict[str, Any]:
    extra, alarms = stage.folder / "extra.json", _alarms(stage.folder)
    row: dict[str, Any] = {
        "name": stage.name,
        "title": stage.title,
        "artifact": stage.facts.get("artifact"),
        "parent": stage.facts.get("parent"),
        "complete": bool(stage.facts),
        "gate": stage.facts.get("gate"),
        "note": None,
        "scores": {},
        "attributes": {},
        "gsb": {},
        "verdicts": {},
        "retention": {},
        "retention_checks": {},
        "without": None,
        "enhancement": None,
        "bargain": _read(stage.folder / BARGAIN)["rows"] if (stage.folder / BARGAIN).exists() else [],
        "drift": _read(stage.folder / DRIFT) if (stage.folder / DRIFT).exists() else None,
        "figures": _read(extra)["figures"] if extra.exists() else [],
        "alarms": alarms,
        "proxy": proxy_of(stage.folder, alarms) if stage.name == "rlhf" else None,
        "cost": _cost_of(stage.name, ledger),
    }
    if stage.evaluation is not None:
        row |= _levels(stage.evaluation)
        if stage.without is not None:
            row |= {"without": _levels(stage.without), "enhancement": _enhancement(stage.evaluation)}
        before = stage.without or (parent.evaluation if parent is not None else None)
        if parent is not None and before is not None:
            try:
                row |= _comparison(before, stage.evaluation)
            except ReelignError as error:
                row["note"] = f"Not compared with {parent.name}: {error}"
    return row


def _alarms(folder: Path) -> list[dict[str, Any]]:
    """The alarms of a stage and of its parts, which name their part."""
    found = []
    for part in ("", *PARTS):
        path = folder / part / "alarms.json"
        rows = _read(path)["alarms"] if path.exists() else []
        found += [row | ({"part": part.replace("-", " ")} if part else {}) for row in rows]
    return found


def _levels(found: Evaluation) -> dict[str, Any]:
    """How good a model is by itself: mean score of each axis, and how often each attribute is right."""
    prompts = [item.prompt for item in found.items]
    attributes = {}
    for name in dict.fromkeys(name for item in found.items for name in item.attributes):
        checked = [item for item in found.items if name in item.attributes]
        right = [float(item.attributes[name]) for item in checked]
        attributes[name] = asdict(bootstrap_mean(right, [item.prompt for item in checked]))
    scores = {axis: asdict(bootstrap_mean([item.scores[axis] for item in found.items], prompts)) for axis in found.axes}
    return {"scores": scores, "attributes": attributes}


def _enhancement(found: Evaluation) -> dict[str, Any]:
    """What became of the battery's prompts: how many of each outcome, and how long they were and are."""
    counts = Counter(item.outcome for item in found.items)
    asked, given = ([len(text.split()) for text in texts] for texts in zip(*_texts(found), strict=True))
    return {
        "outcomes": dict(counts.most_common()),
        "fallback_rate": sum(n for name, n in counts.items() if name.startswith("fallback")) / len(found.items),
        "words": {"asked": asked, "given": given},
    }


def _texts(found: Evaluation) -> list[tuple[str, str]]:
    return [(item.prompt, item.rewrite or item.prompt) for item in found.items]


def _comparison(parent: Evaluation, child: Evaluation) -> dict[str, Any]:
    counts = {axis: Counter(found) for axis, found in verdicts(parent, child).items()}
    kept = retention(parent, child)
    return {
        "gsb": {axis: asdict(interval) for axis, interval in compare(parent, child).items()},
        "verdicts": {axis: {"good": n[1], "same": n[0], "bad": n[-1]} for axis, n in counts.items()},
        "retention": {name: found.value if found else None for name, found in kept.items()},
        "retention_checks": {name: found.n if found else 0 for name, found in kept.items()},
    }


def _headroom(scores: dict[str, Any], first: dict[str, Any], ceiling: dict[str, float]) -> dict[str, float]:
    """Share of the way from the first stage to the autoencoder's ceiling that is left, where there was any."""
    return {
        axis: (ceiling[axis] - found["value"]) / (ceiling[axis] - first[axis]["value"])
        for axis, found in scores.items()
        if axis in ceiling and axis in first and ceiling[axis] > first[axis]["value"]
    }


def _headline(stages: Sequence[Stage], rows: Sequence[dict[str, Any]], cost: dict[str, Any]) -> list[dict[str, Any]]:
    """The numbers that matter: how much better, what control was kept, how much faster, what it cost.

    Better is the last generator against the model that the run began with. What only changes prompts is judged on other
    prompts, and a distilled student is there to be cheap: their gains stand for the run only where nothing else does.
    """
    judged = [row for row in rows if row["gsb"]]
    distilled = [row for row in judged if row["bargain"]]
    tuned = [row for row in judged if row["without"] is None and row not in distilled]
    number = next((rows.index(part[-1]) for part in (tuned, judged) if part), None)
    if number is None:
        gain = _number(
            "Overall GSB of the last stage against its parent", None, "not yet", "no stage was compared so far"
        )
        control = _number("Control kept", None, "not yet", "no stage was compared so far")
    else:
        last, against = _since_the_first(stages, rows, number)
        overall = last["gsb"][OVERALL]
        gain = _number(
            f"Overall GSB: {last['title']} against {against}",
            overall["value"],
            f"{overall['value']:+.2f}",
            f"95 % interval {overall['low']:+.2f} to {overall['high']:+.2f}, {overall['n']} pairs",
        )
        control = _kept(last)
    time = f"{cost['seconds'] / 60:.1f} min" if cost["seconds"] >= 100 else f"{cost['seconds']:.0f} s"
    spent = _number("Cost of the whole run", cost["seconds"], time, f"{cost['nfe']:,} network evaluations")
    saved = [_saved(row, quality=bool(tuned)) for row in distilled[-1:]]
    return [gain, control, *saved, spent]


def _since_the_first(
    stages: Sequence[Stage], rows: Sequence[dict[str, Any]], number: int
) -> tuple[dict[str, Any], str]:
    """The row of a judged stage, compared with the first model, and the title of what it is compared with: its parent
    where the first model was judged on something else, and itself for what only changes prompts."""
    row, first, now = rows[number], stages[0].evaluation, stages[number].evaluation
    if row["without"] is not None:
        return row, "the same model without"
    parent = next(other["title"] for other in rows if other["name"] == row["parent"])
    if first is None or now is None:
        return row, parent
    try:
        return row | _comparison(first, now), rows[0]["title"]
    except ReelignError:  # the note of the stage that was compared with the first model says why
        return row, parent


def _saved(row: dict[str, Any], quality: bool) -> dict[str, Any]:
    """How many fewer network evaluations the student takes, and what that costs: in `quality`, or, where another
    number of the headline says that already, for a clip of each."""
    found = {way["name"]: way for way in row["bargain"]}
    teacher, student, overall = found["teacher"]["nfe"], found["student"]["nfe"], row["gsb"][OVERALL]
    paid = f"overall GSB {overall['value']:+.2f}, {overall['low']:+.2f} to {overall['high']:+.2f}, against its teacher"
    return _number(
        "Network evaluations saved by the student",
        teacher / student,
        f"{teacher / student:.1f}x",
        paid if quality else f"{student:.3g} for a clip, {teacher:.3g} for one of its teacher",
    )


def _kept(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row["retention"].items() if value is not None}
    if not kept:
        return _number("Control kept", None, "not judged", "this battery checks no attributes")
    weakest = min(kept, key=lambda name: kept[name])
    checks = row["retention_checks"][weakest]
    label, detail = f"Control kept, weakest attribute: {weakest}", f"of the {checks} checks that the parent passed"
    return _number(label, kept[weakest], f"{kept[weakest]:.0%}", detail)


def _number(label: str, value: float | None, figure: str, detail: str) -> dict[str, Any]:
    return {"label": label, "value": value, "figure": figure, "detail": detail, "text": f"{figure} ({detail})"}


def _dataset(folder: Path) -> dict[str, Any] | None:
    """Counts of the dataset that the run curated."""
    if not ((folder / MANIFEST).exists() and (folder / DROPPED).exists()):
        return None
    try:
        kept = pq.read_table(folder / MANIFEST, columns=["seconds", "caption"]).to_pylist()
    except (OSError, pa.ArrowInvalid) as error:
        raise ReelignError(f"{folder / MANIFEST} is damaged or unreadable: {error}") from error
    rules = Counter(row["rule"] for row in read_dropped(folder))
    return {
        "kept": len(kept),
        "seconds": round(sum(row["seconds"] for row in kept), 3),
        "captioned": sum(bool(row["caption"]) for row in kept),
        "dropped": dict(rules.most_common()),
    }


def _with_cost(found: dict[str, Any] | None, stage: str, ledger: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    return None if found is None else found | {"cost": _cost_of(stage, ledger)}


def _cost_of(stage: str, ledger: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return _cost(entry for entry in ledger if entry["phase"].split("/")[0] == stage)


def _cost(entries: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(entries)
    return {
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "nfe": sum(row["nfe"] for row in rows),
        "clips": sum(row["clips"] for row in rows),
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in rows), default=0),
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ReelignError(f"{path} is damaged or unreadable: {error}") from error
    if not isinstance(found, dict):
        raise ReelignError(f"{path} is damaged: it holds no JSON object.")
    return found
