"""Whatever a client sends, the server answers as its OpenAPI schema says, and never with a defect."""

from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import positive_data_acceptance

from reelign.feedback.app import application
from reelign.feedback.ballot import Ballot
from reelign.feedback.door import Rate
from reelign.feedback.vote import AXES
from studies import study

FAST = Rate(10**9, 10**9)
FEW = settings(
    max_examples=40,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    deadline=None,
    derandomize=True,
)
OPERATIONS = (("/api/info", "GET"), ("/api/next", "GET"), ("/api/vote", "POST"), ("/api/undo", "POST"))


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> tuple[FastAPI, Any, str, int]:
    """The application, its schema, the token of a rater and the showing that is open."""
    made, tokens = study(tmp_path_factory.mktemp("schema"))
    app = application(made, rater=FAST, stranger=FAST)
    app.add_api_route("/openapi.json", app.openapi, include_in_schema=False)
    showing = Ballot(made.store.database).place(1).showing
    return app, schemathesis.openapi.from_asgi("/openapi.json", app), tokens[0], showing or 0


def test_the_schema_tells_of_all_that_a_page_may_ask(opened):
    schema = opened[0].openapi()
    assert {(path, method.upper()) for path, found in schema["paths"].items() for method in found} == set(OPERATIONS)
    for path, method in OPERATIONS:
        told = schema["paths"][path][method.lower()]
        assert told["security"]
        assert {"200", "401", "413", "422", "429", "503"} <= set(told["responses"])


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [(*operation, GenerationMode.POSITIVE) for operation in OPERATIONS]
    + [(*operation, GenerationMode.NEGATIVE) for operation in OPERATIONS[2:]],
)
def test_every_answer_is_as_the_schema_says(opened, path, method, mode):
    """All checks of schemathesis but one: that a list has no such showing is no fault of the request's form."""
    _, schema, token, showing = opened
    operation = schema[path][method]

    @FEW
    @given(case=operation.as_strategy(generation_mode=mode), real=st.booleans(), writes=st.booleans())
    def check(case, real, writes):
        if real and isinstance(case.body, dict) and "showing" in case.body and mode == GenerationMode.POSITIVE:
            case.body["showing"] = showing
            case.body.get("votes", {}).update(dict.fromkeys(AXES, "left"))
        headers = {"Authorization": f"Bearer {token}"} | ({"X-Reelign": "1"} if writes else {})
        case.call_and_validate(headers=headers, excluded_checks=[positive_data_acceptance])

    check()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_nothing_is_answered_without_a_token(opened, path, method):
    schema = opened[1]

    @FEW
    @given(case=schema[path][method].as_strategy())
    def check(case):
        answer = case.call(headers={"X-Reelign": "1", "Authorization": ""})
        assert answer.status_code == 401
        assert set(answer.json()) == {"detail"}

    check()
