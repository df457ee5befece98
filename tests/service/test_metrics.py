"""The metrics of a server, and whether their documentation is complete."""

from __future__ import annotations

import re

import pytest

from tests.service_kit import RATE, fake_app, running, wav
from tests.shared import ROOT


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.anyio
async def test_the_documentation_names_every_metric_and_no_other() -> None:
    async with running(fake_app()) as client:
        assert (await client.post("/embed", content=wav(RATE))).status_code == 200
        text = (await client.get("/metrics")).text
    served = set(re.findall(r"^# TYPE (\S+)", text, re.M))
    created = {name for name in served if name.endswith("_created")}
    page = (ROOT / "docs/service.md").read_text("utf-8")
    section = page.partition("## Metrics")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(embedder_\w+)`", section)) == served - created
    values = {line for line in text.splitlines() if not line.startswith("#")}
    assert {"embedder_busy_slots 0.0", "embedder_ready 1.0"} <= values
    assert 'embedder_cache_total{outcome="miss"} 1.0' in values
