"""The report says in words what follows from the votes, in a page and in JSON, and nothing that does not follow."""

import json
import re
from dataclasses import replace

import pytest
from axe_playwright_python.sync_playwright import Axe

from reelign.errors import ReelignError
from reelign.feedback.findings import find
from reelign.feedback.report import build_report
from reelign.feedback.simulate import RaterConfig, ScoredPair, simulated_votes
from reelign.feedback.vote import Shown
from verdicts import drawn, vote, votes_of

THREE = {"base": -0.6, "tuned": 0.1, "aligned": 0.5}


def overall(votes):
    return find(votes).comparisons[0].findings["overall"]


def page(votes, folder, **judges):
    build_report(votes, folder, judges)
    return (folder / "report.html").read_text(), json.loads((folder / "report.json").read_text())


def test_a_better_model_is_named_with_points_interval_votes_and_prompts():
    found = overall(votes_of("--0\n-+-\n" * 50))
    assert found.says == "better"
    assert re.fullmatch(
        r"tuned is better than base: \+50 points \[\+4\d, \+5\d\], 300 votes on 100 prompts\.", found.sentence
    )


def test_a_worse_model_is_named_too():
    assert overall(votes_of("++0\n+-+\n" * 50)).sentence.startswith("tuned is worse than base: −50 points [−5")


def test_models_that_cannot_be_told_apart_come_with_the_pairs_that_would_tell():
    found = overall(votes_of("+-0\n+++\n---\n000\n" * 10))
    assert found.says == "apart"
    assert re.search(
        r"cannot be told apart: .* 120 votes on 40 prompts; [\d,]+ more pairs to see 10 points\.", found.sentence
    )


def test_a_few_prompts_are_too_early_however_clear_the_votes():
    found = overall(votes_of("-----\n" * 7))
    assert (found.says, found.sentence) == (
        "few",
        "Too early to say: tuned against base has +100 points, 35 votes on 7 prompts.",
    )
    assert overall(votes_of("-----\n" * 8)).says == "better"


def test_one_vote_all_ties_and_one_rater_have_a_sensible_page(tmp_path):
    html, _ = page([vote("good")], tmp_path / "one")
    assert "Too early to say: tuned against base has −100 points, 1 vote on 1 prompt." in html
    html, _ = page(votes_of("00\n" * 20), tmp_path / "ties")
    assert "tuned and base look the same: 40 votes on 20 prompts, all of them ties." in html
    html, _ = page(votes_of("+\n-\n0\n" * 10), tmp_path / "rater")
    assert "needs pairs that two raters judged; there is none" in html
    assert "these votes cannot" not in html


def test_no_vote_is_an_error_and_votes_of_models_are_no_feedback():
    with pytest.raises(ReelignError, match="no vote of a person yet"):
        find([])
    with pytest.raises(ReelignError, match="no vote of a person yet"):
        find([vote(source="model")])
    found = find([*votes_of("+\n-"), vote(source="model")])
    assert (found.votes, found.of_models, found.comparisons[0].findings["overall"].counts.votes) == (2, 1, 2)


def test_only_gold_so_far_has_a_page_without_comparisons(tmp_path):
    html, found = page([vote(kind="gold", expected="good")], tmp_path)
    assert found["comparisons"] == []
    assert "do not compare two named models" in html


def test_simulated_votes_are_labelled_with_their_share_and_people_are_not(tmp_path):
    votes = votes_of("+-\n-0\n" * 5)
    html, found = page(votes, tmp_path / "people")
    assert "Simulated votes" not in html
    assert found["simulated_share"] == 0
    half = [replace(v, source="simulated", rater="simulated-1") for v in votes[::2]] + votes[1::2]
    html, found = page(half, tmp_path / "half")
    assert "<b>Simulated votes</b> <span>50 % of the 20 votes (10)" in html
    assert "<title>Simulated votes" in html
    assert found["simulated_share"] == 0.5


def test_one_simulated_vote_among_many_and_one_of_a_person_are_not_rounded_away(tmp_path):
    votes = votes_of("+-\n" * 200)
    html, _ = page([replace(votes[0], source="simulated"), *votes[1:]], tmp_path)
    assert "1 % of the 400 votes (1)" in html
    html, _ = page([*(replace(v, source="simulated") for v in votes[1:]), votes[0]], tmp_path)
    assert "99 % of the 400 votes (399)" in html


def test_three_models_have_strengths_beside_evalicas_and_all_pairs_of_them(tmp_path):
    votes = drawn(THREE, nu=0.7, prompts=60)
    html, found = page(votes, tmp_path)
    assert [(c["a"], c["b"]) for c in found["comparisons"]] == [
        ("base", "tuned"), ("base", "aligned"), ("tuned", "aligned"),
    ]  # fmt: skip
    strengths = found["strengths"]["overall"]
    assert strengths["fit"]["models"]["base"]["value"] == pytest.approx(
        strengths["evalica"]["newman"]["base"], abs=1e-6
    )
    assert "evalica, Newman" in html


def test_strengths_without_an_estimate_say_why(tmp_path):
    votes = [v for v in drawn(THREE, nu=0.7, prompts=20) if "base" not in (v.a.model, v.b.model)]
    html, found = page([*votes, *(vote("good", f"{n}") for n in range(3))], tmp_path)
    assert found["strengths"]["overall"]["fit"] is None
    assert "base never lost against the others" in html


def test_judges_stand_beside_another_rater_and_names_are_escaped(tmp_path):
    pairs = [
        ScoredPair(
            f"{n}", f"{n}", Shown("<b>base</b>", f"a{n}"), Shown("tuned", f"b{n}"), {"visual": n / 20}, {"visual": 0.5}
        )
        for n in range(20)
    ]
    scores = {side.clip: dict(found) for p in pairs for side, found in ((p.a, p.scores_a), (p.b, p.scores_b))}
    html, found = page(simulated_votes(pairs, 3, RaterConfig()), tmp_path, **{"evaluation judge": scores, "absent": {}})
    judge = found["judges"]["evaluation judge"]["visual"]
    assert judge["without_ties"]["value"] > 0.8
    assert judge["votes"] == 60
    assert found["judges"]["absent"] == {}
    assert "scored none of the pairs" in html
    assert "another rater" in html
    assert "<b>base</b>" not in html


def test_the_page_needs_no_other_file_but_the_json(tmp_path):
    html, _ = page(votes_of("+-\n" * 9), tmp_path)
    assert re.findall(r'(?:src|href)="([^"]*)"', html) == ["report.json"]
    assert "http" not in html


@pytest.mark.browser
@pytest.mark.parametrize("width", [1200, 390])
def test_the_page_fits_the_screen_and_is_accessible_in_light_and_dark(tmp_path, chromium, width):
    build_report(simulated_study(), tmp_path)
    for scheme in ("light", "dark"):
        context = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        shown = context.new_page()
        shown.goto((tmp_path / "report.html").as_uri())
        assert shown.evaluate("document.documentElement.scrollWidth") == width
        assert shown.get_by_text("Simulated votes", exact=True).is_visible()
        found = Axe().run(shown).response["violations"]
        assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []
        context.close()


def simulated_study():
    return [replace(v, source="simulated", rater="simulated-1") for v in drawn(THREE, nu=0.7, prompts=20)]


def test_the_same_votes_give_the_same_files(tmp_path):
    for name in ("one", "two"):
        build_report(drawn(THREE, nu=0.7, prompts=20), tmp_path / name)
    for file in ("report.html", "report.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
