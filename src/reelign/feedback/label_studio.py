"""Votes as tasks of label-studio, to collect them there, or to bring here what was collected.

    [{"data": {"prompt", "left", "right", "left_model", "right_model", "pair", "left_side"},
      "annotations": [{"result": [{"from_name": "visual", "to_name": "left", "type": "choices",
                                   "value": {"choices": ["left"]}}], "lead_time": 6.1}],
      "predictions": [...]}]

A task is one showing: left and right are what was seen. Annotations are people's; votes of models and simulations are
predictions, which label-studio itself never takes for people. `CONFIG` is the labelling interface to paste into a
project. Its Pairwise tag knows no tie, so the interface has Choices; results of both are read. Clips are served by its
local storage from the folder of the file (LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

from reelign.errors import ReelignError
from reelign.feedback.imported import UNKNOWN, Imported, LeftOut, found_at, named_from
from reelign.feedback.vote import AXES, Axis, Shown, Side, Verdict, Vote, turned
from reelign.files import write_atomically

LAYOUT = "label-studio JSON"
LOCAL = "/data/local-files/"
CHOICES: dict[Verdict, str] = {"good": "left", "same": "same", "bad": "right"}
"""A verdict on the clips as they were shown."""
READ: dict[str, Verdict] = {"left": "good", "same": "same", "tie": "same", "right": "bad"}
CONFIG = (
    """<View>
  <Header value="$prompt"/>
  <View style="display: flex; gap: 1em">
    <Video name="left" value="$left"/>
    <Video name="right" value="$right"/>
  </View>
"""
    + "".join(
        f"""  <Header value="{axis.capitalize()}: which is better?"/>
  <Choices name="{axis}" toName="left" choice="single-radio" showInline="true" required="true">
    <Choice value="left"/><Choice value="same"/><Choice value="right"/>
  </Choices>
"""
        for axis in AXES
    )
    + "</View>\n"
)


def is_label_studio(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether JSON rows are tasks with something said of them."""
    return (
        bool(rows) and isinstance(rows[0].get("data"), dict) and ("annotations" in rows[0] or "predictions" in rows[0])
    )


def write_label_studio(path: Path, votes: Sequence[Vote]) -> None:
    """Write a task for each showing of a pair; what label-studio has no field for is kept as `meta` of a result."""
    tasks: dict[tuple[Any, ...], dict[str, Any]] = {}
    sayings: dict[tuple[Any, ...], dict[str, Any]] = {}
    for vote in votes:
        shown = (vote.pair, vote.left, vote.a, vote.b)
        task = tasks.setdefault(shown, _task(path, vote))
        said = (*shown, vote.rater, vote.kind, vote.source, str(vote.seconds), vote.at)
        if said not in sayings:
            sayings[said] = _saying(vote)
            task["annotations" if vote.source == "person" else "predictions"].append(sayings[said])
        sayings[said]["result"].append(_result(vote))
    write_atomically(path, json.dumps(list(tasks.values()), indent=1, ensure_ascii=False) + "\n")


def read_label_studio(path: Path, tasks: Sequence[Mapping[str, Any]]) -> Imported:
    """The votes of exported tasks; skipped annotations and results that are no votes are left out with a reason."""
    votes, left_out = [], []
    for number, task in enumerate(tasks, 1):
        where = f"task {task.get('id', number)}"
        try:
            sides = _sides(path, task)
        except (KeyError, TypeError, AttributeError) as error:
            left_out.append(LeftOut(where, f"its data has no prompt, left and right: {error}"))
            continue
        for said, by_person in _said(task):
            if said.get("was_cancelled") or not said.get("result"):
                left_out.append(LeftOut(where, "skipped by the annotator" if by_person else "an empty prediction"))
            for result in said.get("result") or []:
                try:
                    votes.append(_vote(task, sides, said, result, by_person))
                except (ReelignError, KeyError, TypeError, ValueError) as error:
                    reason = f"{error} is missing in a result" if isinstance(error, KeyError) else str(error)
                    left_out.append(LeftOut(where, reason))
    return Imported(LAYOUT, votes, left_out, [])


def _task(path: Path, vote: Vote) -> dict[str, Any]:
    shown = {"left": vote.a, "right": vote.b} if vote.left == "a" else {"left": vote.b, "right": vote.a}
    data = {"prompt": vote.prompt, "pair": vote.pair, "left_side": vote.left}
    for side, clip in shown.items():
        name = named_from(path, clip.clip)
        data |= {side: name if "://" in name else f"{LOCAL}?d={quote(name)}", f"{side}_model": clip.model}
    return {"data": data, "annotations": [], "predictions": []}


def _saying(vote: Vote) -> dict[str, Any]:
    """An annotation, or a prediction, without its results."""
    if vote.source != "person":
        return {"model_version": vote.rater, "result": []}
    said: dict[str, Any] = {"was_cancelled": False, "result": []}
    if vote.seconds == vote.seconds:
        said["lead_time"] = vote.seconds
    if vote.at:
        said["created_at"] = datetime.fromtimestamp(vote.at, UTC).isoformat()
    return said


def _result(vote: Vote) -> dict[str, Any]:
    seen = vote.verdict if vote.left == "a" else turned(vote.verdict)
    meta = {"rater": vote.rater, "kind": vote.kind, "source": vote.source, "at": vote.at, "client": vote.client}
    meta |= {"expected": vote.expected, "seconds": None if vote.seconds != vote.seconds else vote.seconds}
    return {
        "from_name": vote.axis,
        "to_name": "left",
        "type": "choices",
        "value": {"choices": [CHOICES[seen]]},
        "meta": meta,
    }


def _sides(path: Path, task: Mapping[str, Any]) -> tuple[Shown, Shown]:
    """What was on the left and on the right."""
    data = task["data"]
    str(data["prompt"])
    left, right = (Shown(data.get(f"{side}_model") or UNKNOWN, _clip(path, data[side])) for side in ("left", "right"))
    return left, right


def _clip(path: Path, address: str) -> str:
    if address.startswith(LOCAL):
        address = parse_qs(urlsplit(address).query)["d"][0]
    return found_at(path, address)


def _said(task: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], bool]]:
    """Annotations and predictions, and whether a person said it."""
    for name, by_person in (("annotations", True), ("predictions", False)):
        for said in task.get(name) or []:
            if isinstance(said, Mapping):
                yield said, by_person


def _vote(
    task: Mapping[str, Any], sides: tuple[Shown, Shown], said: Mapping[str, Any], result: Any, by_person: bool
) -> Vote:
    data, meta = task["data"], result.get("meta") or {}
    left: Side = data.get("left_side") or "a"
    axis: Axis = result["from_name"] if result["from_name"] in AXES else "overall"
    if axis != result["from_name"] and result["type"] != "pairwise":
        raise ReelignError(f"the result of {result['from_name']!r} is none of {', '.join(AXES)}")
    seen = _verdict(result)
    seconds = meta.get("seconds", said.get("lead_time"))
    a, b = sides if left == "a" else sides[::-1]
    return Vote(
        str(data.get("pair") or task["id"]),
        str(data["prompt"]),
        a,
        b,
        axis,
        seen if left == "a" else turned(seen),
        meta.get("rater") or _rater(said),
        float("nan") if seconds is None else float(seconds),
        left,
        meta.get("kind") or "plain",
        meta.get("source") or ("person" if by_person else "model"),
        meta.get("at") or _at(said),
        meta.get("client", "label-studio"),
        meta.get("expected"),
    )


def _verdict(result: Mapping[str, Any]) -> Verdict:
    """On the clips as they were shown."""
    value = result["value"]
    chosen = [value["selected"]] if result["type"] == "pairwise" else value["choices"]
    if len(chosen) != 1 or str(chosen[0]).strip().lower() not in READ:
        raise ReelignError(f"{result['from_name']} is {chosen}, not one of {', '.join(READ)}")
    return READ[str(chosen[0]).strip().lower()]


def _rater(said: Mapping[str, Any]) -> str:
    """An annotation's author as the export names it: a number, or an account; the version of a model."""
    by = said.get("completed_by", said.get("model_version"))
    found = (by.get("email") or by.get("id")) if isinstance(by, Mapping) else by
    return UNKNOWN if found in (None, "") else str(found)


def _at(said: Mapping[str, Any]) -> float:
    created = said.get("created_at")
    return datetime.fromisoformat(created).timestamp() if created else 0.0
