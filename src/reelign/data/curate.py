"""Curation: a folder of real footage to a dataset, with a reason for everything that is left out.

    probe -> shots -> measures -> gates -> near-duplicates -> percentiles in motion cells -> captions -> clips

Every input file ends in `manifest.parquet` (through the clips that were kept) or in `dropped.parquet`. What was found
about a file is kept under `.cache`, so that an interrupted curation goes on; no input is ever modified.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from reelign.data.analyse import analyse, extract
from reelign.data.audit import write_audit
from reelign.data.captions import CaptionEndpoint, Captions, ask_endpoint, find_captions
from reelign.data.clip import read_clip
from reelign.data.manifest import DROPPED, DROPPED_COLUMNS, KEPT_COLUMNS, MANIFEST, storable, write_table
from reelign.data.select import Drop, SelectConfig, blurriest, find_duplicates, gate_shot, motion_cells
from reelign.data.workers import Failure, run_tasks
from reelign.errors import ReelignError
from reelign.files import write_atomically

Progress = Callable[[int, int], None]
Row = dict[str, Any]
ANALYSIS_VERSION = 2
"""Raise this when `analyse` finds something else in the same file: cached findings are then made again."""
VIDEO_SUFFIXES = frozenset(
    ".mp4 .mov .mkv .webm .avi .m4v .ts .mts .mpg .mpeg .flv .wmv .asf .gif .3gp .ogv .h264 .h265 .y4m".split()  # noqa: SIM905
)
OTHER_SUFFIXES = frozenset(".md .html .pdf .zip .tar .py .yaml .jpg .jpeg .png .wav .mp3".split())  # noqa: SIM905


class CurateConfig(BaseModel):
    """Rules of a curation."""

    model_config = ConfigDict(extra="forbid")
    trim_seconds: float = Field(
        default=0.3, ge=0, description="Taken off both ends of a shot that borders another one."
    )
    longest_side: int = Field(default=1280, ge=16, description="Clips are written at most this large.")
    workers: int = Field(default=0, ge=0, description="Processes; 0 is one for each core.")
    seconds_per_file: float = Field(default=300.0, gt=0, description="Time limit for decoding one file.")
    select: SelectConfig = Field(default_factory=SelectConfig, description="Gates, duplicates and percentiles.")
    captions: CaptionEndpoint | None = Field(default=None, description="Vision model for clips without words.")


@dataclass(frozen=True)
class CurateResult:
    """How many clips were kept, and how many files or shots were not."""

    dataset: Path
    kept: int
    dropped: int


def curate(folder: Path, out: Path, config: CurateConfig, progress: Progress | None = None) -> CurateResult:
    """Make the dataset `out` from the footage in `folder`; the same input gives the same dataset.

    Args:
        folder: any files; those that are no video are accounted for too.
        out: outside `folder`.
        config: the rules.
        progress: told (done, total) files.

    Raises:
        ReelignError: there is no such folder, or `out` lies inside it.
    """
    if not folder.is_dir():
        raise ReelignError(f"there is no folder {folder}.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise ReelignError(f"the dataset {out} would lie inside the footage {folder}; choose another place.")
    out.mkdir(parents=True, exist_ok=True)
    return _Curation(folder, out, config, progress or (lambda done, total: None)).run()


class _Curation:
    """One pass; `kept` and `dropped` grow from step to step."""

    def __init__(self, folder: Path, out: Path, config: CurateConfig, progress: Progress) -> None:
        self.folder, self.out, self.config, self.progress = folder, out, config, progress
        self.workers = config.workers or os.cpu_count() or 1
        self.dropped: list[Row] = []

    def run(self) -> CurateResult:
        found = sorted(path for path in self.folder.rglob("*") if path.is_symlink() or not path.is_dir())
        files = [path for path in found if path.is_file()]
        for path in found:
            if not path.is_file():
                self.drop(self._name(path), _no_file(path))
        captions = find_captions(self.folder, files)
        findings = self.analyse_all([path for path in files if self._worth_opening(path, captions)])
        shots = self.choose(self.gate(findings))
        kept = self.write_clips(shots, captions)
        self.dropped.sort(key=lambda row: (row["source"], row["start"] or 0.0, row["rule"]))
        write_table(self.out / MANIFEST, kept, KEPT_COLUMNS)
        write_table(self.out / DROPPED, self.dropped, DROPPED_COLUMNS)
        write_audit(self.out, kept, self.dropped, len(found))
        return CurateResult(self.out, len(kept), len(self.dropped))

    def _worth_opening(self, path: Path, captions: Captions) -> bool:
        """Files that hold words, and other well-known non-videos, are accounted for without being decoded."""
        name = self._name(path)
        if name in captions.notes:
            self.drop(name, Drop("not a video", path.suffix, "", captions.notes[name]))
        elif path.suffix.lower() in OTHER_SUFFIXES:
            self.drop(name, Drop("not a video", path.suffix, "", f"{path.suffix} files are not footage"))
        else:
            return True
        return False

    def analyse_all(self, files: list[Path]) -> dict[Path, Row]:
        """What was found in every file, from the cache where the file is the same."""
        found: dict[Path, Row] = {}
        todo: list[Path] = []
        for path in files:
            facts = _remembered(self._cache(path))
            if facts is not None:
                found[path] = facts
            else:
                todo.append(path)
        self.progress(len(found), len(files))
        tasks = [(str(path),) for path in todo]
        for index, result in run_tasks(analyse, tasks, self.workers, self.config.seconds_per_file):
            facts = {"probe": None, "shots": [], "problem": result.reason} if isinstance(result, Failure) else result
            if not isinstance(result, Failure):
                write_atomically(self._cache(todo[index]), json.dumps(facts))
            found[todo[index]] = facts
            self.progress(len(found), len(files))
        return {path: found[path] for path in files}

    def gate(self, findings: dict[Path, Row]) -> list[Row]:
        """Shots that pass the hard gates."""
        passed: list[Row] = []
        for path, facts in findings.items():
            name, probe = self._name(path), facts["probe"]
            if probe is None:
                self.drop(name, _unreadable(path, facts["problem"]))
                continue
            if facts["problem"]:
                # A damaged stretch is no reason to lose the rest, but it must not go unsaid.
                declared = probe["declared_frames"] or "?"
                words = f"decoding ended after {probe['frames']} of {declared} frames: {facts['problem']}"
                self.drop(
                    name, Drop("damaged", str(probe["frames"]), str(probe["declared_frames"]), words), probe["seconds"]
                )
            if not facts["shots"]:
                self.drop(name, Drop("no picture", "0", "", "every frame is black"))
            for start, end in _gaps(facts):
                words = "black, or a transition from one shot to the next"
                self.drop(name, Drop("between shots", f"{end - start:.2f} s", "", words), start, end)
            for number, shot in enumerate(facts["shots"]):
                trimmed = self._trim(shot, number, facts)
                drop = gate_shot(trimmed, probe, self.config.select)
                longest = self.config.select.max_seconds
                if trimmed["end"] < shot["end"] - self.config.trim_seconds - 1e-6:
                    words = f"the rest of a shot of {shot['end'] - shot['start']:.1f} s, longer than a clip may be"
                    rest = f"{shot['end'] - trimmed['end']:.2f} s"
                    self.drop(name, Drop("too long", rest, f"{longest:g} s", words), trimmed["end"], shot["end"])
                if drop is not None:
                    self.drop(name, drop, trimmed["start"], trimmed["end"])
                else:
                    weight = path.stat().st_size / max(probe["seconds"], 1e-3)
                    pixels = probe["height"] * probe["width"]
                    facts_of_file = {"source": name, "path": path, "probe": probe}
                    passed.append(trimmed | facts_of_file | {"pixels": pixels, "bytes_per_second": weight})
        return passed

    def _trim(self, shot: Row, number: int, facts: Row) -> Row:
        """Take the ends off where the shot borders another one, and cut it to the longest length."""
        shots, fps = facts["shots"], facts["probe"]["fps"]
        before = self.config.trim_seconds if number > 0 else 0.0
        after = self.config.trim_seconds if number < len(shots) - 1 else 0.0
        start = shot["start"] + before
        end = max(start, min(shot["end"] - after, start + self.config.select.max_seconds))
        return shot | {"start": start, "end": end, "frames": round((end - start) * fps)}

    def choose(self, shots: list[Row]) -> list[Row]:
        """Leave out near-duplicates, then the least sharp of each motion cell."""
        repeated = find_duplicates(shots, self.config.select.duplicate_distance)
        for index, twin in repeated.items():
            other = shots[twin]
            reason = (
                f"looks like {other['source']} from {other['start']:.1f} s, which is larger, longer or of more bits"
            )
            self.drop_shot(
                shots[index],
                Drop("near-duplicate", other["source"], f"{self.config.select.duplicate_distance} bits", reason),
            )
        unique = [shot for index, shot in enumerate(shots) if index not in repeated]
        cells = motion_cells([shot["measures"]["motion"] for shot in unique])
        poor = blurriest([shot["measures"]["sharpness"] for shot in unique], cells, self.config.select)
        for index, drop in poor.items():
            self.drop_shot(unique[index], drop)
        return [shot | {"cell": cells[index]} for index, shot in enumerate(unique) if index not in poor]

    def write_clips(self, shots: list[Row], captions: Captions) -> list[Row]:
        """Write what is kept; clips that an interrupted curation wrote are not written again."""
        (self.out / "clips").mkdir(exist_ok=True)
        written: dict[int, Row] = {}
        todo: list[int] = []
        for index, shot in enumerate(shots):
            shot["id"] = _clip_id(shot)
            facts = _remembered(self._record(shot))
            if facts is not None and self._clip(shot).exists() and _sha256(self._clip(shot)) == facts["sha256"]:
                written[index] = facts
            else:
                todo.append(index)
        tasks = [
            (str(s["path"]), s["start"], s["end"], s["probe"]["fps"], self.config.longest_side, str(self._clip(s)))
            for s in (shots[index] for index in todo)
        ]
        for position, result in run_tasks(extract, tasks, self.workers, self.config.seconds_per_file):
            shot = shots[todo[position]]
            if isinstance(result, Failure) or result["problem"]:
                problem = result.reason if isinstance(result, Failure) else result["problem"]
                self.drop_shot(shot, Drop("not written", "", "", problem))
                continue
            facts = {key: result[key] for key in ("frames", "height", "width")} | {"sha256": _sha256(self._clip(shot))}
            write_atomically(self._record(shot), json.dumps(facts))
            written[todo[position]] = facts
        rows = [self._row(shots[index], written[index], captions) for index in sorted(written)]
        names = {row["path"] for row in rows}
        for stale in (self.out / "clips").glob("*.mp4"):
            if f"clips/{stale.name}" not in names:
                stale.unlink()
        return sorted(rows, key=lambda row: row["id"])

    def _row(self, shot: Row, facts: Row, captions: Captions) -> Row:
        caption, origin = captions.words.get(shot["source"], ("", "none"))
        if not caption and self.config.captions is not None:
            caption = ask_endpoint(self.config.captions, read_clip(self._clip(shot)).frames)
            origin = f"endpoint {self.config.captions.model}"
        probe = shot["probe"]
        row = {
            "id": shot["id"],
            "path": f"clips/{shot['id']}.mp4",
            "caption": caption,
            "caption_source": origin,
            "fps": probe["fps"],
            "seconds": facts["frames"] / probe["fps"],
            "source": shot["source"],
            "source_start": shot["start"],
            "source_end": shot["end"],
            "variable_frame_rate": probe["variable_frame_rate"],
            "duplicate_frames": probe["duplicate_frames"],
            "phash": shot["hashes"][0] if shot["hashes"] else "",
            "cell": shot["cell"],
            **facts,
            **{key: value for key, value in shot["measures"].items() if key != "luma"},
        }
        return storable(row)

    def drop_shot(self, shot: Row, drop: Drop) -> None:
        """Note a shot that is left out."""
        self.drop(shot["source"], drop, shot["start"], shot["end"])

    def drop(self, source: str, drop: Drop, start: float | None = None, end: float | None = None) -> None:
        """Note a file or a stretch of it that is left out."""
        row = {
            "source": source,
            "start": start,
            "end": end,
            "rule": drop.rule,
            "value": drop.value,
            "threshold": drop.threshold,
            "reason": drop.reason,
        }
        self.dropped.append(storable(row))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _clip(self, shot: Row) -> Path:
        return self.out / "clips" / f"{shot['id']}.mp4"

    def _record(self, shot: Row) -> Path:
        """What was written for a shot, keyed by all that the clip follows from."""
        key = f"{self._cache(shot['path']).name} {self.config.longest_side}"
        return self.out / ".cache" / f"{shot['id']}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.clip.json"

    def _cache(self, path: Path) -> Path:
        """Keyed by name, size and time: a file that changed is looked at again."""
        stat = path.stat()
        key = json.dumps([ANALYSIS_VERSION, self._name(path), stat.st_size, stat.st_mtime_ns])
        return self.out / ".cache" / f"{hashlib.sha256(key.encode('utf-8', 'surrogateescape')).hexdigest()[:24]}.json"


def _gaps(facts: Row) -> list[tuple[float, float]]:
    """Stretches of a file that belong to none of its shots, in seconds."""
    shots = facts["shots"]
    borders = [0.0, *(time for shot in shots for time in (shot["start"], shot["end"])), facts["probe"]["seconds"]]
    stretches = zip(borders[::2], borders[1::2], strict=True) if shots else ()
    return [(start, end) for start, end in stretches if end - start > 0.5 / facts["probe"]["fps"]]


def _remembered(path: Path) -> Row | None:
    """What an earlier curation found; None where there is nothing, or nothing whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _no_file(path: Path) -> Drop:
    if path.is_dir():
        return Drop("not a file", "link", "", "a link to a folder is not followed: curate that folder itself")
    if path.is_symlink():
        return Drop("not a file", "link", "", "a link to a file that is not there")
    return Drop("not a file", "", "", "a pipe, socket or device")


def _unreadable(path: Path, problem: str) -> Drop:
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        return Drop("unreadable", f"{size} bytes", "", str(error.strerror).lower())
    if size == 0:
        return Drop("unreadable", "0 bytes", "", "the file is empty")
    if head.startswith(b"version https://git-lfs"):
        return Drop("unreadable", f"{size} bytes", "", "a Git LFS pointer, not the video: run git lfs pull")
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return Drop("unreadable", f"{size} bytes", "", "a web page, not a video: the download failed")
    if path.suffix.lower() not in VIDEO_SUFFIXES and path.suffix:
        return Drop("not a video", path.suffix, "", f"{path.suffix} is no video: {problem}")
    return Drop("unreadable", f"{size} bytes", "", problem)


def _clip_id(shot: Row) -> str:
    """Readable and unique: the file's name, where in it, and a hash of both."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", Path(shot["source"]).stem).strip("-").lower()[:40] or "clip"
    key = f"{shot['source']}@{shot['start']:.3f}-{shot['end']:.3f}"
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return f"{stem}-{round(shot['start'] * 1000):07d}-{digest}"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
