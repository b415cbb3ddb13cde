"""What is sent by the service's own schema: no error of the service, and no answer that the schema does not declare."""

from __future__ import annotations

import contextlib

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from running import served
from schemathesis import GenerationMode, checks
from stand_in import StandIn

# What is asserted of every answer, beside the status below 500.
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


@pytest.fixture(scope="module")
def api(tmp_path_factory):
    backend = StandIn(step_s=0.0)
    with served(tmp_path_factory.mktemp("service") / "store", backend, rate_per_minute=1e6) as client:
        yield schemathesis.openapi.from_url(f"{client.base_url}/openapi.json")


def check(operation, mode: GenerationMode, examples: int) -> int:
    """Sends requests of an operation; how many."""
    count = 0

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(operation.as_strategy(generation_mode=mode))
    def send(case):
        nonlocal count
        case.call_and_validate(checks=CHECKS)
        count += 1

    with contextlib.suppress(Unsatisfiable):  # An operation without parameters has no wrong ones.
        send()
    return count


SOME = pytest.mark.slow
ALL = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("examples, method", [pytest.param(1, "post", marks=SOME), pytest.param(25, "", marks=ALL)])
def test_answers_are_those_of_the_schema(api, examples, method):
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) > 20
    for operation in operations:
        if operation.path.endswith("/events") or method not in ("", operation.method):
            continue  # A stream ends with its job.
        assert check(operation, GenerationMode.POSITIVE, examples)
        check(operation, GenerationMode.NEGATIVE, examples)
