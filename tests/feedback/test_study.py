"""Studies on disk: their clips, their gold pairs, their raters, and who may take part."""

import json
import stat
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from forks import environment
from reelign.data.clip import Clip, read_clip
from reelign.errors import ReelignError
from reelign.feedback.ballot import Ballot
from reelign.feedback.clips import level
from reelign.feedback.entrants import Entrant, Sample
from reelign.feedback.gold import degraded
from reelign.feedback.study import (
    StudySettings,
    add_raters,
    export_votes,
    extend,
    make_study,
    open_study,
    read_links,
    token_hash,
)
from reelign.feedback.vote import AXES, Shown, Vote, missing_clips, read_votes
from studies import entrants, moving, study

SETTINGS = StudySettings(gold=2, repeats=0.25)


def still(seed: int) -> np.ndarray:
    return np.repeat(moving(seed)[:1], 9, axis=0)


def test_a_study_is_found_again_as_it_was_made(tmp_path):
    made, tokens = study(tmp_path, names=("one", "two", "three"), prompts=3)
    found = open_study(made.folder)
    assert found == made
    assert found.entrants == ("one", "two", "three")
    pairs = found.store.pairs()
    assert Counter(pair.gold for pair in pairs) == {False: 9, True: 2}
    assert {(pair.a.model, pair.b.model) for pair in pairs if not pair.gold} == {
        ("one", "two"),
        ("one", "three"),
        ("two", "three"),
    }
    assert len(list((made.folder / "clips").iterdir())) == 9 + 2
    assert [row.name for row in found.store.raters()] == ["ann", "bob"]
    assert found.store.rater(token_hash(tokens[1])) == 2


def test_a_clip_is_what_it_was_but_for_its_name_and_its_words(tmp_path):
    """Title and comment of a file, where tools put prompts and models, do not come along."""
    given = entrants(tmp_path)
    file = given[0].clips[0].file
    with av.open(str(file)) as source, av.open(str(tmp_path / "told.mp4"), "w") as told:
        told.metadata.update({"title": "secret-model", "comment": "made by secret-model"})
        stream = told.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                told.mux(packet)
    assert b"secret-model" in (tmp_path / "told.mp4").read_bytes()
    clips = [replace(given[0].clips[0], file=tmp_path / "told.mp4"), *given[0].clips[1:]]
    made = make_study(tmp_path / "study", [replace(given[0], clips=clips), given[1]], SETTINGS)
    for pair in made.store.pairs():
        for side in (pair.a, pair.b):
            assert b"secret-model" not in made.clip(side.clip).read_bytes()
    first = next(pair for pair in made.store.pairs() if pair.prompt == "words of prompt 0")
    error = read_clip(made.clip(first.a.clip)).frames.astype(float) - read_clip(file).frames
    assert 10 * np.log10(255**2 / np.square(error).mean()) > 36  # dB; nobody sees a difference there


def test_clips_of_a_prompt_get_one_frame_rate_and_one_length():
    slow, fast = Clip(moving(0, frames=9), 8), Clip(moving(1, frames=48), 24)
    levelled = level([slow, fast])
    assert [(clip.fps, len(clip.frames)) for clip in levelled] == [(24, 27), (24, 27)]
    assert np.array_equal(levelled[0].frames, np.repeat(slow.frames, 3, axis=0))
    assert np.array_equal(levelled[1].frames, fast.frames[:27])
    assert np.array_equal(level([slow, slow])[1].frames, slow.frames)


def test_gold_is_only_what_anybody_can_see():
    clip = Clip(moving(3), 8)
    blurred, frozen = degraded(clip, "blurred"), degraded(clip, "frozen")
    assert blurred is not None and frozen is not None
    assert (
        np.abs(np.diff(blurred.frames.astype(int), axis=2)).mean()
        < 0.5 * np.abs(np.diff(clip.frames.astype(int), axis=2)).mean()
    )
    assert (frozen.frames == clip.frames[0]).all()
    assert degraded(Clip(still(3), 8), "frozen") is None
    assert degraded(Clip(np.full((9, 32, 32, 3), 90, np.uint8), 8), "blurred") is None


def test_gold_pairs_are_a_clip_against_its_harmed_self_with_the_answers_that_follow(tmp_path):
    made, _ = study(tmp_path, gold=4)
    gold = [pair for pair in made.store.pairs() if pair.gold]
    assert Counter("blurred" in pair.b.model for pair in gold) == {True: 2, False: 2}
    for pair in gold:
        harmed = "visual" if "blurred" in pair.b.model else "motion"
        assert pair.expected == {harmed: "good", "overall": "good"}
        assert pair.b.model.startswith(pair.a.model)


def test_gold_may_be_the_users_own(tmp_path):
    given = entrants(tmp_path)
    sides = [Shown("x", str(given[0].clips[0].file)), Shown("y", str(given[1].clips[0].file))]
    votes = [
        Vote("known", "easy", *sides, axis, verdict, "me", 1.0, "a", "gold", "person", expected=verdict)
        for axis, verdict in (("text", "bad"), ("overall", "bad"))
    ]
    made = make_study(tmp_path / "study", given, StudySettings(gold=0), known=votes)
    [gold] = [pair for pair in made.store.pairs() if pair.gold]
    assert (gold.prompt, gold.expected, gold.a.model) == ("easy", {"text": "bad", "overall": "bad"}, "x")
    with pytest.raises(ReelignError, match="`expected` is set nowhere"):
        make_study(tmp_path / "none", given, StudySettings(gold=0), known=[replace(votes[0], expected=None)])


def test_too_much_gold_is_said_before_anything_is_left_behind(tmp_path):
    with pytest.raises(ReelignError, match="20 gold pairs were asked for, and 12 can be made"):
        make_study(tmp_path / "study", entrants(tmp_path / "s"), StudySettings(gold=20))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_links_are_readable_by_their_owner_alone_and_tokens_are_not_kept(tmp_path):
    made, tokens = study(tmp_path)
    links = made.folder / "links.txt"
    assert stat.S_IMODE(links.stat().st_mode) == 0o600
    assert read_links(made) == [("ann", f"/r/{tokens[0]}"), ("bob", f"/r/{tokens[1]}")]
    made.store.database.close()
    held = b"".join(path.read_bytes() for path in made.folder.iterdir() if path.is_file() and path != links)
    assert not [token for token in tokens if token.encode() in held]
    assert token_hash(tokens[0]).encode() in held
    assert len(set(tokens)) == 2 and min(map(len, tokens)) >= 24


def test_an_address_with_a_password_is_readable_by_its_owner_alone(tmp_path):
    made, _ = study(tmp_path, database=f"sqlite:///{tmp_path / 'elsewhere.sqlite'}")
    assert stat.S_IMODE((made.folder / "study.json").stat().st_mode) == 0o600
    assert not (made.folder / "votes.sqlite").exists()
    assert len(open_study(made.folder).store.raters()) == 2


def test_new_raters_get_what_was_seen_least(tmp_path):
    made, _ = study(tmp_path, raters=["ann"], prompts=8, quota=4, gold=0, repeats=0)
    add_raters(made, ["bob"])
    assert made.store.given(1) & made.store.given(2) == set()
    assert set(made.store.coverage().values()) == {1.0}


def test_a_further_round_shows_every_rater_new_pairs_those_first_that_are_least_sure(tmp_path):
    made, _ = study(tmp_path, prompts=8, quota=4, gold=0, repeats=0)
    before = {rater: made.store.given(rater) for rater in (1, 2)}
    unsure = {pair.id: float(number) for number, pair in enumerate(made.store.pairs())}
    extend(made, 2, unsure)
    for rater, seen in before.items():
        new = made.store.given(rater) - seen
        assert new == set(sorted(set(unsure) - seen, key=unsure.__getitem__)[-2:])
    with pytest.raises(ReelignError, match="Ask for 1 to 2"):
        extend(made, 9)


def test_exported_votes_find_their_clips_wherever_the_file_lies(tmp_path, monkeypatch):
    made, _ = study(tmp_path)
    ballot = Ballot(made.store.database)
    ballot.vote(1, ballot.place(1).showing or 0, dict.fromkeys(AXES, "left"))
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "study" / "votes.jsonl", tmp_path / "deep" / "er" / "votes.jsonl", Path("votes.jsonl")):
        assert export_votes(made, path) == 4
        votes = read_votes(path)
        assert len(votes) == 4
        assert missing_clips(votes) == []


def test_without_the_extra_it_is_named(tmp_path):
    (tmp_path / "sqlalchemy.py").write_text("raise ImportError('not installed')")
    for module in ("study", "store", "app"):
        command, variables = [sys.executable, "-c", f"import reelign.feedback.{module}"], {"PYTHONPATH": str(tmp_path)}
        done = subprocess.run(command, env=environment(**variables), capture_output=True, text=True, check=False)
        assert "pip install 'reelign[feedback]'" in done.stderr.splitlines()[-1]


def test_entrants_that_do_not_fit_together_are_named(tmp_path):
    one, two = entrants(tmp_path / "s")
    cases = [
        ([one], "at least two entrants"),
        ([one, replace(two, name=one.name)], "the same name"),
        ([one, Entrant("empty", [])], "empty has no clips"),
        (
            [one, replace(two, clips=two.clips[:5])],
            "secret-model-B has no clip of 'words of prompt 5'.*5 clips against 6",
        ),
        (
            [one, replace(two, clips=[replace(clip, seed=1) for clip in two.clips])],
            "with seed 0 by secret-model-A and with 1",
        ),
        ([one, replace(two, clips=[*two.clips[1:], Sample("p0", "x", tmp_path / "no.mp4")])], "cannot read the clip"),
    ]
    for given, said in cases:
        with pytest.raises(ReelignError, match=said):
            make_study(tmp_path / "study", given, SETTINGS)
    with pytest.raises(ReelignError, match="Ask for 3 to"):
        make_study(tmp_path / "study", [one, two], SETTINGS.model_copy(update={"quota": 500}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_what_is_there_is_not_overwritten_and_what_is_damaged_is_said(tmp_path):
    made, _ = study(tmp_path)
    with pytest.raises(ReelignError, match="exists already"):
        make_study(made.folder, entrants(tmp_path / "s"), SETTINGS)
    with pytest.raises(ReelignError, match="a rater 'ann' already"):
        add_raters(made, ["ann"])
    with pytest.raises(ReelignError, match="no name of a rater"):
        add_raters(made, ["a\tb"])
    facts = json.loads((made.folder / "study.json").read_text())
    (made.folder / "study.json").write_text(json.dumps(facts | {"settings": {"axes": ["beauty"]}}))
    with pytest.raises(ReelignError, match=r"study\.json is damaged"):
        open_study(made.folder)
    with pytest.raises(ReelignError, match=r"is no study: study\.json is missing"):
        open_study(Path(tmp_path))
