"""Decoding processes that cannot start are our fault, and cost no slot."""

from __future__ import annotations

import asyncio

import pytest

from embedder.audio.decode import HTTP_LIMITS
from service.decoder import Decoder, DecoderDied
from service.decoding import DecoderPool
from service.errors import NotReady
from tests.decoder_kit import MEMORY, decoders
from tests.service_kit import RATE, decoder_pids, wav

pytestmark = pytest.mark.anyio
CLIP = wav(RATE)


async def _no_child(*_: object) -> None:
    raise DecoderDied("its process ended with exit status 1")


async def test_a_child_that_cannot_start_is_our_fault_and_costs_no_slot(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with decoders(max_jobs=1) as pool:
        await pool.decode(CLIP, RATE)
        with monkeypatch.context() as broken:
            broken.setattr(Decoder, "start", _no_child)
            for _ in range(3):  # more than there are slots
                with pytest.raises(NotReady, match="log says why"):
                    await asyncio.wait_for(pool.decode(CLIP, RATE), 30)
        assert "exit status 1" in caplog.text
        assert (await pool.decode(CLIP, RATE)).samples.size == RATE


@pytest.mark.parametrize("error", [OSError("no more processes"), TimeoutError()])
async def test_whatever_keeps_a_child_from_starting_is_the_same_error(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise error

    async with decoders(max_jobs=1) as pool:
        await pool.decode(CLIP, RATE)
        monkeypatch.setattr(Decoder, "start", fail)
        with pytest.raises(NotReady):
            await pool.decode(CLIP, RATE)


async def test_a_program_that_is_no_decoder_is_a_child_that_died(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.decoder.sys.executable", "/bin/false")
    pool = DecoderPool(2, HTTP_LIMITS, MEMORY, 100)
    with pytest.raises(NotReady):
        await pool.start()
    await pool.close()


async def test_a_pool_starts_with_those_that_can_and_tries_the_others_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, tries = Decoder.start, iter((False, True))

    async def sometimes(*given: object) -> Decoder:
        if next(tries, True):
            return await start(*given)  # type: ignore[arg-type]
        raise DecoderDied("just this once")

    monkeypatch.setattr(Decoder, "start", sometimes)
    pool = DecoderPool(2, HTTP_LIMITS, MEMORY, 100)
    await pool.start()
    try:
        assert len(decoder_pids(pool)) == 1
        await asyncio.gather(*(pool.decode(CLIP, RATE) for _ in range(8)))
        assert len(decoder_pids(pool)) == 2
    finally:
        await pool.close()
