"""Strengths are those that were put in, those that evalica and a general optimiser find, and never made up."""

import numpy as np
import pytest
from scipy.optimize import minimize

from reelign.errors import ReelignError
from reelign.feedback.strength import evalica_strengths, fit_strengths
from reelign.feedback.vote import WORTH
from verdicts import davidson, drawn, vote

KNOWN = {"base": -0.6, "tuned": 0.0, "aligned": 0.2, "distilled": 0.4}


def values(strengths):
    return {name: interval.value for name, interval in strengths.models.items()}


def test_known_strengths_and_ties_come_back_from_many_votes():
    """600 prompts give each difference a standard error of about 0.07: four of them are allowed."""
    found = fit_strengths(drawn(KNOWN, nu=0.9, prompts=600), "overall")
    assert values(found) == pytest.approx(KNOWN, abs=0.2)
    assert found.nu == pytest.approx(0.9, rel=0.15)
    assert list(found.models) == ["distilled", "aligned", "tuned", "base"]
    assert (found.votes, found.prompts) == (3600, 600)


def test_intervals_hold_the_known_strengths_in_about_95_of_100_studies():
    """100 studies of 4 strengths: the standard error of the share is 0.022 at most, three of them are allowed."""
    inside = []
    for seed in range(100):
        found = fit_strengths(drawn(KNOWN, nu=0.7, prompts=60, seed=seed), "overall").models
        inside += [found[name].low <= value <= found[name].high for name, value in KNOWN.items()]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.066)


def test_the_fit_is_the_maximum_that_a_general_optimiser_finds():
    votes = drawn(KNOWN, nu=0.5, prompts=40)
    names = list(KNOWN)

    def negative_log_likelihood(x):
        strengths = dict(zip(names, x[:-1], strict=True))
        picked = [davidson(strengths[v.a.model] - strengths[v.b.model], np.exp(x[-1]))[1 - v.worth] for v in votes]
        return -np.log(picked).sum() + x[:-1].mean() ** 2

    found = minimize(negative_log_likelihood, np.zeros(5), tol=1e-10)
    fit = fit_strengths(votes, "overall")
    assert values(fit) == pytest.approx(dict(zip(names, found.x[:-1] - found.x[:-1].mean(), strict=True)), abs=1e-4)
    assert fit.nu == pytest.approx(np.exp(found.x[-1]), rel=1e-4)


def test_evalica_finds_the_same_strengths_by_newmans_iteration():
    votes = drawn(KNOWN, nu=0.8, prompts=100)
    assert values(fit_strengths(votes, "overall")) == pytest.approx(
        evalica_strengths(votes, "overall")["newman"], abs=1e-6
    )


def test_without_ties_it_is_bradley_and_terrys_model_and_equals_evalicas():
    votes = [vote for vote in drawn(KNOWN, nu=0.8, prompts=100) if vote.worth]
    fit = fit_strengths(votes, "overall")
    assert fit.nu == 0
    assert values(fit) == pytest.approx(evalica_strengths(votes, "overall")["bradley_terry"], abs=1e-6)


def test_two_models_without_ties_are_the_logarithm_of_their_odds():
    votes = [vote("good", f"{n}") for n in range(30)] + [vote("bad", f"{n}") for n in range(10)]
    found = values(fit_strengths(votes, "overall"))
    assert found["base"] - found["tuned"] == pytest.approx(np.log(3))


def test_the_order_of_a_pair_changes_nothing():
    votes = drawn(KNOWN, nu=0.8, prompts=50)
    words = {worth: verdict for verdict, worth in WORTH.items()}
    other = [
        vote(words[-v.worth], v.prompt, models=(v.b.model, v.a.model)) if n % 2 else v for n, v in enumerate(votes)
    ]
    assert values(fit_strengths(other, "overall")) == pytest.approx(values(fit_strengths(votes, "overall")))


def test_raters_who_repeat_each_other_narrow_no_interval():
    votes = drawn(KNOWN, nu=0.8, prompts=80)
    once, thrice = (fit_strengths(rows, "overall").models["base"] for rows in (votes, votes * 3))
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))


def test_a_model_that_never_lost_has_no_finite_strength_and_is_named():
    votes = [v for v in drawn(KNOWN, nu=0.8, prompts=30) if "distilled" not in (v.a.model, v.b.model)]
    votes += [vote("bad", f"{n}", models=("base", "distilled")) for n in range(5)]
    with pytest.raises(ReelignError, match="distilled never lost against the others"):
        fit_strengths(votes, "overall")
    votes = [vote("good", f"{n}") for n in range(5)]
    with pytest.raises(ReelignError, match="base never lost"):
        fit_strengths(votes, "overall")


@pytest.mark.parametrize(
    ("verdicts", "order"),
    [
        ({("base", "tuned"): "good good same"}, "base > tuned"),
        ({("base", "tuned"): "same bad", ("tuned", "aligned"): "same good"}, "tuned > "),
    ],
)
def test_ties_do_not_help_where_no_vote_contradicts_an_order(verdicts, order):
    """The likelihood grows for ever as strengths spread and nu with them."""
    votes = [
        vote(verdict, f"{n}", models=models)
        for models, said in verdicts.items()
        for n, verdict in enumerate(said.split())
    ]
    with pytest.raises(ReelignError, match=f"no vote contradicts the order {order}"):
        fit_strengths(votes, "overall")


def test_one_win_against_the_order_is_enough_for_an_estimate():
    votes = [vote(verdict, f"{n}") for n, verdict in enumerate(["good"] * 5 + ["same", "bad"])]
    found = values(fit_strengths(votes, "overall"))
    assert found["base"] - found["tuned"] == pytest.approx(np.log(5), abs=1e-6)


def test_a_weak_prior_gives_an_estimate_where_votes_alone_do_not():
    found = values(fit_strengths([vote("good", f"{n}") for n in range(5)], "overall", prior=0.1))
    assert 0 < found["base"] < 10
    assert found["base"] == pytest.approx(-found["tuned"])


def test_models_that_were_never_compared_are_named_in_groups():
    votes = [vote(verdict, f"{n}") for n, verdict in enumerate(("good", "bad"))]
    votes += [vote(verdict, f"{n}", models=("x", "y")) for n, verdict in enumerate(("good", "bad"))]
    with pytest.raises(ReelignError, match=r"never compared: base, tuned \| x, y"):
        fit_strengths(votes, "overall")


def test_nothing_but_ties_or_one_prompt_is_refused():
    for prior in (0.0, 0.1):
        with pytest.raises(ReelignError, match="every vote is a tie"):
            fit_strengths([vote("same", f"{n}") for n in range(5)], "overall", prior)
    with pytest.raises(ReelignError, match="2 models and 1 prompts"):
        fit_strengths([vote("good"), vote("bad")], "overall")
