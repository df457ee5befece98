"""The pool of decoding processes, by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from embedder.errors import AudioTooLarge, BadAudio
from service.cache import fingerprint
from service.decode_worker import SHARED_BYTES
from service.decoder import Decoded
from service.decoding import DecoderPool
from tests.decoder_kit import MEMORY, decoders
from tests.service_kit import RATE, decoder_pids, eventually, wav

pytestmark = pytest.mark.anyio
CLIP = wav(RATE)


async def test_a_killed_child_is_replaced_and_the_job_done_nevertheless() -> None:
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        os.kill(pid, signal.SIGSTOP)
        job = asyncio.ensure_future(pool.decode(CLIP, RATE))
        await eventually(lambda: any(decoder.jobs for decoder in pool.decoders))
        os.kill(pid, signal.SIGKILL)
        assert (await job).samples.size == RATE
        assert decoder_pids(pool) != [pid]


async def test_a_file_that_kills_its_decoder_twice_is_to_blame() -> None:
    killed: set[int] = set()

    async def executioner(pool: DecoderPool) -> None:
        while True:
            for decoder in pool.decoders:
                if decoder.jobs and decoder.process.pid not in killed:
                    os.kill(decoder.process.pid, signal.SIGKILL)
                    killed.add(decoder.process.pid)
            await asyncio.sleep(0)

    async with decoders() as pool:
        killer = asyncio.ensure_future(executioner(pool))
        try:
            long = wav(200 * RATE)
            with pytest.raises(BadAudio, match="crashes"):
                await pool.decode(long, RATE)
            assert len(killed) == 2
            killer.cancel()
            assert (await pool.decode(CLIP, RATE)).samples.size == RATE
        finally:
            killer.cancel()


async def test_a_file_that_uses_up_the_processor_time_is_too_slow_and_not_tried_again() -> None:
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        os.kill(pid, signal.SIGSTOP)
        job = asyncio.ensure_future(pool.decode(CLIP, RATE))
        await eventually(lambda: any(decoder.jobs for decoder in pool.decoders))
        os.kill(pid, signal.SIGXCPU)  # as the kernel does
        os.kill(pid, signal.SIGCONT)
        with pytest.raises(AudioTooLarge, match="not decoded within"):
            await job
        assert decoder_pids(pool) == []
        assert (await pool.decode(CLIP, RATE)).samples.size == RATE


async def test_memory_is_asked_for_when_a_decoder_is_free() -> None:
    asked: list[int] = []
    free = asyncio.Event()

    async def room(number: int) -> None:
        asked.append(number)
        await free.wait()

    async with decoders() as pool:
        jobs = [
            asyncio.ensure_future(pool.decode(wav(seed=n), RATE, partial(room, n)))
            for n in range(4)
        ]
        await eventually(lambda: asked == [0])
        await asyncio.sleep(0.05)
        assert asked == [0]
        jobs[0].cancel()  # while it waits for memory: the decoder is the next job's
        await eventually(lambda: asked == [0, 1])
        free.set()
        results = await asyncio.gather(*jobs, return_exceptions=True)
        assert [isinstance(result, Decoded) for result in results] == [False, True, True, True]


async def test_a_waiting_job_is_dropped_with_its_client() -> None:
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        os.kill(pid, signal.SIGSTOP)
        busy = asyncio.ensure_future(pool.decode(CLIP, RATE))
        await eventually(lambda: any(decoder.jobs for decoder in pool.decoders))
        waiting = [asyncio.ensure_future(pool.decode(wav(seed=n), RATE)) for n in range(5)]
        await asyncio.sleep(0)
        for job in waiting:
            job.cancel()
        await asyncio.wait(waiting)
        os.kill(pid, signal.SIGCONT)
        assert (await busy).samples.size == RATE
        await pool.decode(CLIP, RATE)
        (decoder,) = pool.decoders
        assert decoder.jobs == 2


async def test_a_job_that_runs_holds_its_caller_until_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        os.kill(pid, signal.SIGSTOP)
        job = asyncio.ensure_future(pool.decode(CLIP, RATE))
        await eventually(lambda: any(decoder.jobs for decoder in pool.decoders))
        job.cancel()
        await asyncio.sleep(0.05)
        assert not job.done()
        os.kill(pid, signal.SIGCONT)
        await asyncio.wait({job})
        assert job.cancelled()
        assert decoder_pids(pool) == [pid]  # it finished in time and goes on

        monkeypatch.setattr("service.decoding.GONE_SECONDS", 0.01)
        os.kill(pid, signal.SIGSTOP)
        job = asyncio.ensure_future(pool.decode(CLIP, RATE))
        await eventually(lambda: any(decoder.jobs == 2 for decoder in pool.decoders))
        job.cancel()
        await asyncio.wait({job})
        assert decoder_pids(pool) == []  # a longer job ends with its child
        assert (await pool.decode(CLIP, RATE)).samples.size == RATE


async def test_shared_memory_and_pipe_give_the_same() -> None:
    async with decoders() as pool:
        short, long = wav(RATE), wav(300 * RATE)  # 19 MB of samples
        results = [await pool.decode(data, RATE) for data in (short, long, short)]
        for decoded, seconds in zip(results, (1, 300, 1), strict=True):
            assert decoded.samples.size == seconds * RATE
            assert decoded.fingerprint == fingerprint(decoded.samples.tobytes())
        assert (results[0].samples == results[2].samples).all()
        assert results[0].samples.any()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has memory that can be sealed")
async def test_a_child_cannot_take_the_shared_memory_away() -> None:
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        descriptors = Path(f"/proc/{pid}/fd").iterdir()
        files = [file for file in descriptors if "memfd" in str(file.readlink())]
        assert files
        for file in files:
            with pytest.raises(PermissionError):
                os.truncate(file, 0)
        assert (await pool.decode(CLIP, RATE)).samples.size == RATE


async def test_an_upload_larger_than_the_shared_memory_is_decoded_too() -> None:
    async with decoders() as pool:
        upload = wav(550 * RATE)
        assert len(upload) > SHARED_BYTES
        assert (await pool.decode(upload, RATE)).samples.size == 550 * RATE


async def test_a_folder_with_modules_of_these_names_is_not_imported_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "service").mkdir()
    for name in ("service/__init__.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit('a stranger was imported')", "utf-8")
    monkeypatch.chdir(tmp_path)
    async with decoders() as pool:
        assert len((await pool.decode(CLIP, RATE)).samples) == RATE


async def test_a_child_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.decoding.GRACE_SECONDS", -9.9)
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(AudioTooLarge, match="not decoded"):
            await pool.decode(CLIP, RATE)
        assert not Path(f"/proc/{pid}").exists()


async def test_a_child_is_replaced_after_its_jobs() -> None:
    async with decoders(max_jobs=2) as pool:
        pids = []
        for _ in range(4):
            await pool.decode(CLIP, RATE)
            pids += decoder_pids(pool)
        assert pids[0] == pids[1] != pids[2] == pids[3]


async def test_a_child_knows_no_torch_no_secret_and_opens_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBEDDER_API_KEY", "sesame")
    async with decoders() as pool:
        (pid,) = decoder_pids(pool)
        home = Path(f"/proc/{pid}")
        assert "libtorch" not in (home / "maps").read_text()
        assert b"sesame" not in (home / "environ").read_bytes()
        limits = {
            line[:25].strip(): line[26:].split()[0]
            for line in (home / "limits").read_text().splitlines()
        }
        opened = len(list((home / "fd").iterdir()))
        assert int(limits["Max open files"]) <= opened
        assert limits["Max address space"] == str(MEMORY)
        assert limits["Max file size"] == limits["Max core file size"] == "0"


async def test_too_little_memory_is_the_clips_size_not_a_crash() -> None:
    async with decoders(memory=300 << 20) as pool:
        before = decoder_pids(pool)
        with pytest.raises(AudioTooLarge, match="takes more memory than there is"):
            await pool.decode(wav(599 * 8000, rate=8000), 96_000)
        assert decoder_pids(pool) == before
        assert (await pool.decode(CLIP, RATE)).samples.size == RATE
