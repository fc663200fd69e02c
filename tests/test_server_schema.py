"""The server keeps to its own OpenAPI schema, whatever is sent (schemathesis)."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from server_app import MODEL, engine_of, served_in_thread

EXAMPLES = 60
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{model}", "GET"),
    ("/health", "GET"),
    ("/metrics", "GET"),
]


def as_a_schema_cannot_say(body: Any) -> Any:
    """Who speaks last, and which settings a policy has."""
    if not isinstance(body, dict):
        return body
    if ":" in str(body.get("model")):
        body["model"] = f"{MODEL}@majority:budget=2"
    wishes = body.get("conviction")
    if isinstance(wishes, dict):
        if ":" in str(wishes.get("policy", "")):
            wishes["policy"] = "majority:budget=3"
        if "@" in str(body.get("model")):
            wishes.pop("policy", None)
        if "single" in (wishes.get("policy"), str(body.get("model")).partition("@")[2]):
            wishes.pop("budget", None)
    messages = body.get("messages")
    if isinstance(messages, list) and messages and isinstance(messages[-1], dict):
        messages[-1].update(role="user", content="How many?")
    return body


@pytest.fixture(scope="module")
def schema() -> Iterator[Any]:
    with served_in_thread(engine_of(7, 5, 7, 7), ceilings={"budget": 8}) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_all_operations_are_tried(schema: Any) -> None:
    known = {(path, method.upper()) for path in schema for method in schema[path]}
    assert {one for one in known if not one[0].startswith("/api/")} == set(OPERATIONS)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_answers_are_as_the_schema_says(
    schema: Any, path: str, method: str, mode: GenerationMode
) -> None:
    operation = schema[path][method]
    if mode is GenerationMode.NEGATIVE and method == "GET":
        pytest.skip("nothing about it can be wrong")

    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def every(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            case.body = as_a_schema_cannot_say(case.body)
        case.call_and_validate(timeout=20)

    every()
