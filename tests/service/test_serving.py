"""How one server process ends when something in it does not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn

from service.listening import listen, url
from service.serving import Exit, Server
from tests.service_kit import (
    WARM_UP,
    FakeModel,
    eventually,
    fake_app,
    is_ready,
    state_of,
    wav,
)

pytestmark = pytest.mark.anyio


class Parent:
    """The process that started this one."""

    alive = True

    def is_alive(self) -> bool:
        return self.alive


@pytest.fixture
def parent(monkeypatch: pytest.MonkeyPatch) -> Parent:
    made = Parent()
    monkeypatch.setattr("service.serving.parent_process", lambda: made)
    return made


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The codes with which the process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr("service.serving._leave", codes.append)
    return codes


@asynccontextmanager
async def served(model: FakeModel, **changes: object) -> AsyncIterator[tuple[Server, str]]:
    """A server at work in this event loop, and where."""
    app = fake_app(model, **changes)
    sockets = listen("127.0.0.1", 0)
    server = Server(uvicorn.Config(app, log_config=None), state_of(app))
    task = asyncio.create_task(server.serve(sockets))
    try:
        await eventually(lambda: server.started and is_ready(app))
        yield server, url(sockets[0])
    finally:
        server.should_exit = True
        model.may_run.set()
        await asyncio.wait_for(task, 60)


async def ask(base: str) -> int:
    """The status of one request for a clip."""
    async with httpx.AsyncClient(base_url=base, timeout=60, trust_env=False) as client:
        return (await client.post("/embed", content=wav())).status_code


async def test_of_several_processes_one_that_hangs_makes_room_for_another(
    parent: Parent, left: list[int]
) -> None:
    model = FakeModel()
    async with served(model, hung_seconds=0.05) as (_, base):
        assert parent.alive
        assert not left
        model.may_run.clear()
        request = asyncio.create_task(ask(base))
        await eventually(lambda: left)
        model.may_run.set()
        await request
    assert set(left) == {Exit.HUNG}


def hung(server: Server) -> bool:
    return state_of(server.config.app).models.hung  # type: ignore[arg-type]


async def test_a_lone_process_that_hangs_stays_and_says_so(left: list[int]) -> None:
    model = FakeModel()
    async with served(model, hung_seconds=0.05) as (server, base):
        model.may_run.clear()
        request = asyncio.create_task(ask(base))
        await eventually(lambda: hung(server))
        async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
            assert (await client.get("/livez")).status_code == 503
        model.may_run.set()
        assert await request == 200
    assert not left


async def test_a_process_whose_parent_is_gone_stops(parent: Parent) -> None:
    async with served(FakeModel()) as (server, _):
        parent.alive = False
        await eventually(lambda: not server.servers[0].is_serving())


async def test_a_batch_that_hangs_does_not_keep_a_server_from_stopping(
    monkeypatch: pytest.MonkeyPatch, left: list[int]
) -> None:
    monkeypatch.setattr("service.serving._CLOSE_SECONDS", 0.0)
    model = FakeModel()
    async with served(model, drain_seconds=0.3) as (server, base):
        model.may_run.clear()
        request = asyncio.create_task(ask(base))
        await eventually(lambda: model.calls == WARM_UP + 1)
        server.should_exit = True
        await eventually(lambda: left)
        model.may_run.set()
        await asyncio.wait({request})
        request.exception()
    assert left == [Exit.HUNG]


def test_a_signal_that_comes_twice_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    app = fake_app()
    server = Server(uvicorn.Config(app, log_config=None), state_of(app))
    server.handle_exit(15, None)
    assert (server.should_exit, state_of(app).draining, ended) == (True, True, [])
    server.handle_exit(2, None)  # a terminal's Ctrl-C is followed by the parent's signal
    assert not ended
    server.handle_exit(15, None)
    assert ended == [143]
