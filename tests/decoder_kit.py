"""A pool of one decoding process for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from embedder.audio.decode import HTTP_LIMITS
from service.decoding import DecoderPool

MEMORY = 1 << 30


@asynccontextmanager
async def decoders(memory: int = MEMORY, max_jobs: int = 100) -> AsyncIterator[DecoderPool]:
    """A pool of one child."""
    pool = DecoderPool(1, HTTP_LIMITS, memory, max_jobs)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()
