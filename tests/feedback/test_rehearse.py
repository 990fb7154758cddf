"""Simulated raters of a study: they go the way of people, and nobody can take them for people."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from miniatures import rendered
from reelign.errors import ReelignError
from reelign.feedback.ballot import Ballot
from reelign.feedback.rehearse import rehearse
from reelign.feedback.simulate import RaterConfig
from reelign.feedback.sources import new_study
from reelign.feedback.study import Study, StudySettings, export_votes, open_study
from reelign.feedback.vote import AXES, Vote, read_votes
from studies import study

SURE = RaterConfig(temperature=1e-3, k=1.0)
"""Raters who always name the clip that the judge prefers."""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> list[Path]:
    root = tmp_path_factory.mktemp("datasets")
    return [rendered(root / "blurred", 4, "blur"), rendered(root / "clean", 4)]


def made(folder: Path, datasets: list[Path], **settings: object) -> Study:
    asked = StudySettings.model_validate({"gold": 2, "repeats": 0.25} | settings)
    new_study([*map(str, datasets)], None, folder, ["ann", "bob"], asked)
    return open_study(folder)


@pytest.fixture
def fresh(datasets, tmp_path) -> Iterator[Study]:
    found = made(tmp_path / "study", datasets)
    yield found
    found.store.database.close()


def test_every_list_is_answered_under_the_raters_names_and_called_simulated(fresh, tmp_path):
    told = []
    total = sum(row.total for row in fresh.store.raters())
    assert rehearse(fresh, SURE, told=lambda *said: told.append(said)) == total
    assert told[-1] == (total, total)
    assert all(row.done == row.total for row in fresh.store.raters())
    votes = fresh.votes()
    assert len(votes) == 4 * total
    assert {vote.rater for vote in votes} == {"ann", "bob"}
    assert {vote.kind for vote in votes} == {"plain", "gold", "repeat"}
    assert {(vote.source, vote.client) for vote in votes} == {("simulated", "simulation")}
    export_votes(fresh, tmp_path / "votes.jsonl")
    assert {vote.source for vote in read_votes(tmp_path / "votes.jsonl")} == {"simulated"}
    assert rehearse(fresh, SURE) == 0


def test_a_sure_rater_prefers_the_clean_clip_and_finds_the_gold(fresh):
    rehearse(fresh, SURE)
    visual = [vote for vote in fresh.votes() if vote.axis == "visual"]
    assert {better(vote) for vote in visual if vote.kind != "gold"} == {fresh.entrants[1]}
    gold = [vote for vote in visual if vote.kind == "gold" and vote.expected]
    assert gold
    assert all(vote.verdict == vote.expected for vote in gold)


def better(vote: Vote) -> str:
    return {"good": vote.a.model, "bad": vote.b.model, "same": "none"}[vote.verdict]


def test_the_seed_decides_and_raters_are_not_of_one_mind(datasets, tmp_path):
    """Raters who cannot tell clips apart: two of them agree on all of four pairs and axes once in 2^16 times.

    A study that is made again has other ids and other names of clips, and gets the same votes.
    """
    found = []
    for name in ("one", "again"):
        opened = made(tmp_path / name, datasets, gold=0, repeats=0)
        rehearse(opened, RaterConfig(temperature=1e6, k=1.0), seed=3)
        for rater in ("ann", "bob"):
            votes = [vote for vote in opened.votes() if vote.rater == rater]
            found.append({(vote.prompt, vote.axis): vote.verdict for vote in votes})
    ann, bob, *again = found
    assert again == [ann, bob]
    assert ann.keys() == bob.keys()
    assert ann != bob


def test_only_the_axes_of_the_study_are_answered(datasets, tmp_path):
    opened = made(tmp_path / "study", datasets, axes=("motion", "overall"), gold=0)
    rehearse(opened, SURE)
    assert {vote.axis for vote in opened.votes()} == {"motion", "overall"}


def test_prompts_of_another_world_are_refused_before_anything_is_said(tmp_path):
    opened, _ = study(tmp_path)
    with pytest.raises(ReelignError, match=r"understand the miniature's words only, .* asks for 'words of prompt 0'"):
        rehearse(opened, SURE)
    assert opened.votes() == []


def test_where_people_have_voted_nobody_is_simulated(fresh):
    ballot = Ballot(fresh.store.database)
    ballot.vote(1, ballot.place(1).showing or 0, dict.fromkeys(AXES, "left"))
    with pytest.raises(ReelignError, match=r"people have voted in .*Make another study"):
        rehearse(fresh, SURE)
    assert {vote.source for vote in fresh.votes()} == {"person"}
