"""The CSV of VideoAlign's training code (arXiv 2501.13918), and of VideoGen-RewardBench: a row holds a pair's labels.

    path_A, path_B, prompt, VQ, MQ, TA, fps_A, num_frames_A, fps_B, num_frames_B        labels A, B or same
    and where there are any: Overall, A_model, B_model, and of ours pair, rater, source, left

A reward model is trained on it as it is. It is preference data, so only plain votes are written: gold pairs, hidden
repeats, times and browsers stay in the JSON lines. Frame rates and counts are those of the files, in which a reader may
find them again, and are not kept with votes.
"""

from __future__ import annotations

import csv
import hashlib
import io
import math
import posixpath
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av

from reelign.errors import ReelignError
from reelign.feedback.imported import UNKNOWN, Imported, LeftOut, found_at, named_from
from reelign.feedback.vote import Axis, Shown, Verdict, Vote, turned
from reelign.files import write_atomically

COLUMNS: dict[str, Axis] = {"VQ": "visual", "MQ": "motion", "TA": "text", "Overall": "overall"}
LABELS: dict[str, Verdict] = {"a": "good", "same": "same", "b": "bad"}
NO_LABEL = ("", "nan", "none", "null")
LAYOUT = "VideoAlign CSV"
HEADER = [
    *("path_A", "path_B", "prompt", "VQ", "MQ", "TA", "fps_A", "num_frames_A", "fps_B", "num_frames_B"),
    *("Overall", "A_model", "B_model", "pair", "rater", "source", "left"),
]


def is_videoalign(text: str) -> bool:
    """Whether a text begins as such a table does."""
    header = next(csv.reader(text.splitlines()[:1]), [])
    return {"path_A", "path_B"} <= {name.strip() for name in header}


def read_videoalign(path: Path, text: str) -> Imported:
    """The votes of a table; a row of nothing but repeated labels of a nameless rater is kept once.

    Nameless raters whose labels contradict each other are several: "unknown-1", "unknown-2". Rows on the same two clips
    are one pair, in the order of its first row.

    Raises:
        ReelignError: a column is missing.
    """
    reader = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    reader.fieldnames = [name.strip() for name in reader.fieldnames or []]
    if "prompt" not in reader.fieldnames or not set(COLUMNS) & set(reader.fieldnames):
        raise ReelignError(
            f"{path} has the columns {', '.join(reader.fieldnames)}, not prompt and VQ, MQ, TA or Overall."
        )
    table, left_out = _Table(path), []
    for row in reader:
        where = f"line {reader.line_num}"
        try:
            left_out += [LeftOut(where, reason) for reason in table.add(row)]
        except ReelignError as error:
            left_out.append(LeftOut(where, str(error)))
    notes = [f"{table.repeated} rows repeat another one and are kept once."] if table.repeated else []
    return Imported(LAYOUT, table.votes, left_out, notes)


def write_videoalign(path: Path, votes: Sequence[Vote]) -> list[str]:
    """Write the plain votes, a row for each pair and rater.

    Returns:
        Clips that are not on this disk: their rows are written without frame rates and counts.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    seen: dict[tuple[Any, ...], int] = defaultdict(int)
    facts = {clip: _facts(clip) for clip in dict.fromkeys(side.clip for vote in votes for side in (vote.a, vote.b))}
    names = {axis: column for column, axis in COLUMNS.items()}
    labels = {verdict: label.upper() if len(label) == 1 else label for label, verdict in LABELS.items()}
    for vote in votes:
        if vote.kind != "plain":
            continue
        showing = (vote.pair, vote.rater, vote.source, vote.left, vote.a, vote.b)
        seen[showing, vote.axis] += 1
        row = rows.setdefault((showing, seen[showing, vote.axis]), _row(path, vote, facts))
        row[names[vote.axis]] = labels[vote.verdict]
    out = io.StringIO()
    writer = csv.DictWriter(out, HEADER, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_atomically(path, out.getvalue())
    return [clip for clip, found in facts.items() if found is None]


class _Table:
    """What has been read so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.votes: list[Vote] = []
        self.repeated = 0
        self.order: dict[str, tuple[Shown, Shown]] = {}
        self.said: dict[str, list[tuple[Any, ...]]] = defaultdict(list)

    def add(self, row: Mapping[str, Any]) -> list[str]:
        """Take a row up.

        Returns:
            A reason for each label that cannot be read.

        Raises:
            ReelignError: nothing of the row can be.
        """
        if None in row or None in row.values():
            raise ReelignError("it has not as many cells as the header")
        cells = {name: value.strip() for name, value in row.items()}
        if empty := [name for name in ("path_A", "path_B", "prompt") if not cells[name]]:
            raise ReelignError(f"{' and '.join(empty)} is empty")
        there: dict[Axis, str] = {axis: cells[column] for column, axis in COLUMNS.items() if column in cells}
        labels: dict[Axis, str] = {axis: label for axis, label in there.items() if label.lower() not in NO_LABEL}
        if not labels:
            raise ReelignError("it has no label")
        pair, turn = self._pair(cells)
        verdicts: dict[Axis, Verdict] = {}
        for axis, label in labels.items():
            if verdict := LABELS.get(label.lower()):
                verdicts[axis] = turned(verdict) if turn else verdict
        if verdicts and (rater := cells.get("rater") or self._nameless(pair, verdicts)):
            self._vote(pair, cells, rater, verdicts, turn)
        return [f"{axis} is {label!r}, not A, B or same" for axis, label in labels.items() if axis not in verdicts]

    def _pair(self, cells: Mapping[str, str]) -> tuple[str, bool]:
        """Its id, and whether its first row has the two clips in the other order."""
        a, b = (
            Shown(cells.get(f"{side}_model") or UNKNOWN, found_at(self.path, cells[f"path_{side}"])) for side in "AB"
        )
        named = sorted(posixpath.normpath(cells[f"path_{side}"]) for side in "AB")
        told = "\0".join([*named, cells["prompt"]])
        pair = cells.get("pair") or hashlib.sha256(told.encode()).hexdigest()[:12]
        first = self.order.setdefault(pair, (a, b))
        if first not in ((a, b), (b, a)):
            raise ReelignError(f"the pair {pair!r} has other clips above")
        return pair, first != (a, b)

    def _nameless(self, pair: str, verdicts: Mapping[Axis, Verdict]) -> str | None:
        """A name for a rater without one; None when the row only repeats another."""
        said, before = tuple(sorted(verdicts.items())), self.said[pair]
        if said in before:
            self.repeated += 1
            return None
        before.append(said)
        return f"{UNKNOWN}-{len(before)}"

    def _vote(
        self, pair: str, cells: Mapping[str, str], rater: str, verdicts: Mapping[Axis, Verdict], turn: bool
    ) -> None:
        source: Any = cells.get("source") or "person"
        left: Any = cells.get("left") or "a"
        if turn:
            left = {"a": "b", "b": "a"}.get(left, left)
        self.votes += [
            Vote(pair, cells["prompt"], *self.order[pair], axis, verdict, rater, math.nan, left, "plain", source)
            for axis, verdict in verdicts.items()
        ]


@dataclass(frozen=True)
class _Facts:
    fps: float
    frames: int


def _facts(clip: str) -> _Facts | None:
    """Frame rate and frames, counted in the container and not by decoding; None without the file."""
    if not Path(clip).is_file():
        return None
    try:
        with av.open(clip) as container:
            stream = container.streams.video[0]
            frames = sum(packet.size > 0 for packet in container.demux(stream))
            return _Facts(float(stream.average_rate or 0), frames)
    except (av.FFmpegError, IndexError) as error:
        raise ReelignError(f"{clip} is no video that can be read: {error}") from error


def _row(path: Path, vote: Vote, facts: Mapping[str, _Facts | None]) -> dict[str, Any]:
    row: dict[str, Any] = {"prompt": vote.prompt}
    row |= {"pair": vote.pair, "rater": vote.rater, "source": vote.source, "left": vote.left}
    for side, shown in (("A", vote.a), ("B", vote.b)):
        row |= {f"path_{side}": named_from(path, shown.clip), f"{side}_model": shown.model}
        if found := facts[shown.clip]:
            row |= {f"fps_{side}": found.fps, f"num_frames_{side}": float(found.frames)}
    return row
