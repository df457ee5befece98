"""What a request may cost is added up before it is paid, and memory is counted until it is free."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import pytest

from embedder.errors import BadRequest, UnsupportedAudio
from embedder.events.finder import EventRules
from embedder.model import AudioEmbedder
from embedder.outputs import Output
from embedder.streams import output_of
from service import rendering
from service.answers import Answer
from service.budget import Budget, Cost
from service.errors import Overloaded, TooMuchWork
from service.models import Served
from tests.service_kit import RATE, FakeModel, eventually, fake_app, running, state_of, wav

pytestmark = pytest.mark.anyio


def served(model: FakeModel) -> Served:
    batcher: Any = None
    return Served(model, batcher, ("fake",))


def events() -> Output:
    return Output.of("events", "timestamps", RATE, ())


class Wide(FakeModel):
    """A scene longer than one piece of JSON."""

    width = rendering.PIECE_VALUES + 5

    def __init__(self) -> None:
        super().__init__()
        self.tap_sizes = {"mel": self.width}

    def window_features(self, batch: Any, taps: Any) -> Any:
        features = super().window_features(batch, taps)
        return {
            tap: values.repeat(1, self.width // 4 + 1)[:, : self.width]
            for tap, values in features.items()
        }


@asynccontextmanager
async def client_of(model: FakeModel, **changes: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with running(fake_app(model, **changes)) as client:
        yield client


@pytest.mark.parametrize(
    ("fields", "samples", "cost"),
    [
        (("embedding",), 5 * RATE, Cost(1, 5.0, 4)),
        (("embedding",), 20 * RATE, Cost(9, 90.0, 4)),
        (("tags",), 20 * RATE, Cost(9, 90.0, 3)),
        (("tags", "timestamps"), 20 * RATE, Cost(9, 90.0, 27)),
        (("embedding", "timestamps", 1000.0, 500.0, ("mel", "b5")), RATE, Cost(3, 3.0, 24)),
    ],
)
async def test_windows_seconds_and_values_are_known_beforehand(
    fields: tuple[Any, ...], samples: int, cost: Cost
) -> None:
    model = FakeModel()
    assert Cost.of(output_of(model, *fields), samples, model) == cost
    assert cost.bytes == 4 * cost.values


async def test_events_cost_a_value_for_each_label_and_frame() -> None:
    model = FakeModel()
    assert Cost.of(events(), RATE, model) == Cost(1, 10.0, 25 * 3)


@pytest.mark.parametrize("cost", [Cost(11, 1, 1), Cost(1, 11, 1), Cost(1, 1, 11)])
async def test_whatever_is_beyond_the_budget_is_too_much(cost: Cost) -> None:
    budget = Budget(10, 10.0, 10)
    budget.check(Cost(10, 10.0, 10))
    with pytest.raises(TooMuchWork, match=r"11.*use a larger hop_ms, fewer taps or a shorter clip"):
        budget.check(cost)


async def test_an_answer_of_too_many_values_is_refused_before_the_network_runs() -> None:
    model = FakeModel()
    async with client_of(model, max_values=83) as client:
        calls = model.calls
        refused = await client.post("/timestamps", content=wav())  # 21 windows of 4 values
        assert (refused.status_code, refused.json()["code"]) == (413, "too_much_work")
        assert "84 values" in refused.json()["detail"]
        assert model.calls == calls
        assert (await client.post("/timestamps?hop_ms=60", content=wav())).status_code == 200
        assert (await client.get("/info")).json()["limits"]["max_values"] == 83


async def test_a_tap_is_named_once() -> None:
    model = AudioEmbedder.build("mn01_as")
    with pytest.raises(BadRequest, match="'mel' is named 2 times; name each once"):
        model.check_taps(("mel", "b5", "mel"))


async def test_a_long_vector_comes_whole() -> None:
    async with client_of(Wide()) as client:
        for kind, shape in (("scene", (Wide.width,)), ("timestamps", (2, Wide.width))):
            query = f"/embed?kind={kind}&window_ms=1000&hop_ms=1000"
            answer = await client.post(query, content=wav())
            assert np.shape(answer.json()["embedding"]) == shape


async def test_long_answers_are_made_beside_the_event_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "PIECE_VALUES", 8)
    monkeypatch.setattr(rendering, "PIECE_TAGS", 4)
    made: list[bool] = []
    dump = rendering._dump

    def noted(value: Any) -> bytes:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            made.append(False)
        else:
            made.append(True)
        return dump(value)

    monkeypatch.setattr(rendering, "_dump", noted)
    async with client_of(FakeModel()) as client:
        for query in ("/timestamps", "/tags?kind=timestamps&window_ms=100&hop_ms=50"):
            long = await client.post(query, content=wav())
            assert long.json()["kind"] == "timestamps"
            assert len(made) > 5
            assert not any(made)
            made.clear()


@pytest.mark.parametrize("path", ["/timestamps", "/tags?kind=timestamps&hop_ms=10&window_ms=100"])
async def test_npy_and_npz_in_pieces_are_what_numpy_writes(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_of(FakeModel()) as client:

        async def asked(form: str) -> Any:
            headers = {"accept": f"application/x-{form}"}
            response = await client.post(path, content=wav(), headers=headers)
            return np.load(io.BytesIO(response.content))

        short, archive = await asked("npy"), await asked("npz")
        monkeypatch.setattr(rendering, "PIECE_VALUES", 7)
        np.testing.assert_array_equal(await asked("npy"), short)
        pieces = await asked("npz")
        assert set(pieces) == set(archive)
        for name in archive:
            np.testing.assert_array_equal(pieces[name], archive[name])


async def test_answers_are_counted_until_nobody_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.pipeline.SMALL_ANSWER", 0)
    model = FakeModel()
    app = fake_app(model)
    async with running(app):
        pipeline = state_of(app).pipeline
        answer = await pipeline.answer(wav(), *await pipeline.ask(None, "embedding", "timestamps"))
        assert pipeline.answers.held == answer.values.nbytes
        again = rendering.respond(answer, "application/json", 0)
        del answer
        await eventually(lambda: pipeline.answers.held == 0)
        assert again.status_code == 200
        with pytest.raises(UnsupportedAudio):
            await pipeline.answer(b"?", *await pipeline.ask(None, "embedding"))
        assert pipeline.answers.held == 0


async def test_answers_wait_for_memory_before_they_are_computed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.pipeline.SMALL_ANSWER", 100)
    model = FakeModel()
    app = fake_app(model, max_memory=500)
    async with running(app):
        pipeline = state_of(app).pipeline
        pipeline.audio.budget = 1 << 30
        rows = await pipeline.ask(None, "embedding", "timestamps")  # 336 bytes
        one = await pipeline.ask(None, "embedding")
        first = await pipeline.answer(wav(), *rows)
        calls = model.calls
        second = asyncio.ensure_future(pipeline.answer(wav(seed=1), *rows))
        await eventually(lambda: pipeline.slots.taken == 1 and pipeline.answers.awaited)
        assert model.calls == calls
        small = await pipeline.answer(wav(seed=2), *one)  # need not wait
        assert small.values.shape == (4,)
        with monkeypatch.context() as patch:
            patch.setattr("service.pipeline.ANSWER_SECONDS", 0.01)
            with pytest.raises(Overloaded):
                await pipeline.answer(wav(seed=3), *rows)
        del first
        assert (await second).values.shape == (21, 4)


async def test_more_events_than_anybody_reads_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "MAX_EVENTS", 8)
    model = FakeModel()

    def answer(n_events: int) -> Answer:
        values = np.zeros((2 * n_events, 3), np.float32)
        values[::2, 0] = 0.9
        samples = 2 * n_events * RATE // 25
        return Answer(served(model), events(), values, samples, "miss")

    rules = EventRules.of(model.labels, median=1)
    assert len(rendering.find_events(answer(8), rules)) == 8
    with pytest.raises(TooMuchWork, match="higher threshold"):
        rendering.find_events(answer(9), rules)
    monkeypatch.setattr(rendering, "MAX_COMPARED", 8)
    assert len(rendering.find_events(answer(8), rules)) == 8
    monkeypatch.setattr(rendering, "MAX_COMPARED", 7)
    with pytest.raises(TooMuchWork, match="more than 7 values in medians"):
        rendering.find_events(answer(8), rules)
