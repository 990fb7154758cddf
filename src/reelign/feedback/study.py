"""A study: clips of several entrants for the same prompts, the pairs that are shown, the raters and their votes.

    STUDY/study.json      who takes part and how it was made; never served
    STUDY/clips/*.mp4     opaque names, all written by the same encoder
    STUDY/votes.sqlite    pairs, lists and votes, unless another database was named
    STUDY/links.txt       the raters' personal links, readable by the owner alone

Nothing that raters can reach names an entrant, a file or a folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reelign.errors import ReelignError
from reelign.feedback.clips import Progress, degraded_pairs, known_pairs, write_clips
from reelign.feedback.database import absolute, create_database, open_database
from reelign.feedback.entrants import Entrant, check_entrants
from reelign.feedback.pairing import Candidate, longest, parts, plan
from reelign.feedback.store import Store
from reelign.feedback.vote import AXES, Axis, Vote, write_votes

STUDY, CLIPS, VOTES, LINKS = "study.json", "clips", "votes.sqlite", "links.txt"
DEFAULT_QUOTA = 60


class StudySettings(BaseModel):
    """What a study asks, and of how many pairs."""

    model_config = ConfigDict(extra="forbid")
    title: str = Field(default="Which video is better?", min_length=1, max_length=120, description="What raters read.")
    axes: tuple[Axis, ...] = Field(default=AXES, min_length=1, description="What is asked about each pair.")
    quota: int | None = Field(
        default=None, ge=1, description=f"Showings of a rater; by default all pairs, {DEFAULT_QUOTA} at most."
    )
    repeats: float = Field(default=0.1, ge=0, le=0.5, description="Share of a rater's list that is asked twice.")
    gold: int = Field(default=3, ge=0, description="Pairs with a known answer that each rater sees among the others.")
    seed: int = Field(default=0, ge=0, description="Seed of the lists.")


@dataclass(frozen=True)
class Study:
    """A study on disk, its database open."""

    folder: Path
    settings: StudySettings
    entrants: tuple[str, ...]
    created: str
    store: Store = field(compare=False)

    def votes(self) -> list[Vote]:
        """All votes that count; their clips are files of the study."""
        return self.store.votes(str(self.folder / CLIPS))

    def missing(self) -> list[str]:
        """Clips that are named and not there."""
        named = {side.clip for pair in self.store.pairs() for side in (pair.a, pair.b)}
        return sorted(name for name in named if not self.clip(name).is_file())

    def clip(self, name: str) -> Path:
        """The file of a clip that the store names."""
        return self.folder / CLIPS / name


def make_study(
    out: Path,
    entrants: Sequence[Entrant],
    settings: StudySettings,
    database: str | None = None,
    known: Sequence[Vote] = (),
    progress: Progress | None = None,
) -> Study:
    """Write a new study without raters.

    Args:
        out: the folder of the study, which must not hold anything yet; a killed call leaves nothing there.
        entrants: at least two, with clips of the same prompts and seeds.
        settings: of the study.
        database: where votes are kept, if not in the study's folder.
        known: votes whose `expected` is set: their pairs become gold, beside those that the study makes itself.
        progress: told of the clips that are written.

    Raises:
        ReelignError: the folder is not empty, the entrants do not fit together, or a clip or the database fails.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ReelignError(f"{out} exists already. Choose another place for the new study, or delete it.")
    check_entrants(entrants)
    if settings.quota is not None:
        duels = len(entrants) * (len(entrants) - 1) // 2
        gold = settings.gold + len({vote.pair for vote in known})
        parts(settings.quota, duels * len(entrants[0].clips), gold, settings.repeats)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        pairs = write_clips(partial / CLIPS, entrants, progress)
        pairs += known_pairs(partial / CLIPS, known, settings.axes)
        pairs += degraded_pairs(partial / CLIPS, pairs, settings.gold, settings.axes, settings.seed)
        name = secrets.token_hex(4)
        pairs = [replace(pair, id=f"{name}-{number:05d}") for number, pair in enumerate(pairs)]
        url = f"sqlite:///{(partial / VOTES).absolute()}" if database is None else absolute(database)
        store = Store(create_database(url, {"secret": secrets.token_hex(32)}))
        store.add_pairs(pairs)
        store.database.close()
        _write_facts(partial / STUDY, entrants, settings, None if database is None else url)
        out.parent.mkdir(parents=True, exist_ok=True)
        partial.replace(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return open_study(out)


def open_study(folder: Path) -> Study:
    """Open a study and its database.

    Raises:
        ReelignError: the folder is no study, or the database cannot be opened.
    """
    path = folder / STUDY
    if not path.is_file():
        raise ReelignError(
            f"{folder} is no study: {STUDY} is missing. Make one with: reelign judge new A B --out {folder}"
        )
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        settings = StudySettings.model_validate(facts["settings"])
        entrants, created, url = tuple(facts["entrants"]), str(facts["created"]), facts["database"]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ReelignError(f"{path} is damaged: {error}") from error
    store = Store(open_database(url or f"sqlite:///{(folder / VOTES).absolute()}"))
    return Study(folder, settings, entrants, created, store)


def add_raters(
    study: Study, names: Sequence[str], priority: Mapping[str, float] | None = None
) -> list[tuple[str, str]]:
    """Give each new rater a list and a personal link.

    Args:
        study: the study.
        names: of the new raters.
        priority: what is worth asking, by id of the pair; see `pairing.plan`.

    Returns:
        Name and path of the link for each; they are also appended to `links.txt`, and nowhere else: the database keeps
        a hash of what the link holds.
    """
    check_names(names)
    links = []
    for name in names:
        token = secrets.token_urlsafe(18)
        rater = study.store.add_rater(name, token_hash(token))
        _extend(study, rater, study.settings.quota, priority)
        links.append((name, f"/r/{token}"))
        _append_link(study.folder / LINKS, name, f"/r/{token}")
    return links


def check_names(names: Sequence[str]) -> None:
    """Whether raters may be called so.

    Raises:
        ReelignError: a name is empty, or has characters that cannot be printed.
    """
    if strange := [name for name in names if not name.strip() or not name.isprintable()]:
        raise ReelignError(f"{strange[0]!r} is no name of a rater.")


def extend(study: Study, count: int, priority: Mapping[str, float] | None = None) -> None:
    """Append showings of pairs that they have not seen to the lists of all raters: a further round, for example of the
    pairs whose outcome is least sure.

    Raises:
        ReelignError: a rater has not so many pairs left.
    """
    raters = study.store.raters()
    for rater in raters:
        pool, gold = _unseen(study, study.store.given(rater.id))
        if not pool:
            raise ReelignError(f"{rater.name} has seen all pairs of {study.folder}: make a new study with other clips.")
        parts(count, len(pool), len(gold), study.settings.repeats)
    for rater in raters:
        _extend(study, rater.id, count, priority)


def export_votes(study: Study, path: Path) -> int:
    """Write all votes that count as JSON lines, with paths of clips relative to the file; how many there are."""
    clips = Path(os.path.relpath(study.folder / CLIPS, path.parent)).as_posix()
    votes = study.store.votes(clips)
    write_votes(path, votes)
    return len(votes)


def read_links(study: Study) -> list[tuple[str, str]]:
    """Names of raters and the paths of their links, as far as `links.txt` is still there."""
    path = study.folder / LINKS
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").splitlines()
    return [(name, link) for name, _, link in (line.rpartition("\t") for line in lines) if link]


def token_hash(token: str) -> str:
    """What the database keeps of a token. Tokens are random and long: no salt is needed."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _extend(study: Study, rater: int, count: int | None, priority: Mapping[str, float] | None) -> None:
    settings, seen = study.settings, study.store.given(rater)
    pool, gold = _unseen(study, seen)
    generator = np.random.default_rng((settings.seed, rater, len(seen)))
    quota = count or min(DEFAULT_QUOTA, longest(len(pool), len(gold), settings.repeats))
    coverage = study.store.coverage()
    study.store.extend(rater, plan(pool, gold, quota, settings.repeats, generator, coverage, seen, priority))


def _unseen(study: Study, seen: Collection[str]) -> tuple[list[Candidate], list[str]]:
    """The plain pairs that are not among those seen, and the ids of such gold ones."""
    pairs = [pair for pair in study.store.pairs() if pair.id not in seen]
    return [pair.candidate for pair in pairs if not pair.gold], [pair.id for pair in pairs if pair.gold]


def _write_facts(path: Path, entrants: Sequence[Entrant], settings: StudySettings, database: str | None) -> None:
    """Write `study.json`; an address may hold a password, so nobody else reads it."""
    facts = {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "entrants": [entrant.name for entrant in entrants],
        "prompts": len(entrants[0].clips),
        "settings": settings.model_dump(mode="json"),
        "database": database,
    }
    path.touch(mode=0o600 if database else 0o644)
    path.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _append_link(path: Path, name: str, link: str) -> None:
    path.touch(mode=0o600)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{name}\t{link}\n")
        file.flush()
        os.fsync(file.fileno())
