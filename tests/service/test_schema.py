"""The server answers what its schema says: Schemathesis asks every route in every way."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.service_kit import RATE, fake_app, live, wav

schemathesis = pytest.importorskip("schemathesis")
KEY = "sesame"
EXAMPLES = 50  # of each route

# So that half of the requests come to an answer.
schemathesis.openapi.format("binary", st.one_of(st.binary(), st.just(wav(RATE // 10))))
schemathesis.serializer.alias("audio/*", "application/octet-stream")
schema = schemathesis.openapi.from_dict(fake_app(api_key=KEY).openapi())


# What fits the schema may still be no audio, and name no model or tap that there is.
schema.config.checks.positive_data_acceptance.expected_statuses = [
    "2xx",
    "400",
    "404",
    "415",
    "422",
]


@schema.auth()
class _Key:
    def get(self, *_: Any) -> str:
        return KEY

    def set(self, case: Any, key: str, _: Any) -> None:
        case.headers["authorization"] = f"Bearer {key}"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with live(fake_app(api_key=KEY)) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.slow
@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_the_schema_declares(case: Any, url: str) -> None:
    case.call_and_validate(base_url=url)
