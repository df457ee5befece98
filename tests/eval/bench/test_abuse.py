"""Attacks in miniature: what they send, what is measured, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from embedder.audio.decode import load_audio
from embedder.cli import app
from embedder.errors import BadRequest
from eval.bench import flac, matroska
from eval.bench.abuse import AttackCost
from eval.bench.attacks import ATTACKS, Bound, Target, material
from eval.bench.launch import Launch, free_port, server
from eval.bench.promises import PROMISES
from eval.bench.watch import ServerUsage, ServerWatch
from eval.bench.wire import Reply, exchange, request
from service.protocol import HeadDeadline
from tests.service_kit import FakeModel, fake_app, live

CALM = ServerUsage(peak_mib=110, start_mib=100, threads=8, start_threads=8, stall=0.1, killed=False)


@pytest.mark.parametrize("blocks", [1, 130])
@pytest.mark.parametrize("channels", [1, 2])
def test_flac_of_one_value_is_what_it_says(blocks: int, channels: int) -> None:
    data = flac.constant(blocks, 32_000, value=3277, channels=channels, block=4096)
    samples = load_audio(data, 32_000)
    assert samples.size == blocks * 4096
    assert np.allclose(samples, 0.1, atol=1e-4)


@pytest.mark.parametrize("number", [0, 0x7F, 0x80, 0x7FF, 0x800, 0xFFFF, 0x10000, 0x10FFFF])
def test_frames_are_numbered_as_utf8(number: int) -> None:
    assert flac._utf8(number) == chr(number).encode()


def test_an_index_in_reverse_is_a_file_of_a_second() -> None:
    assert load_audio(matroska.backwards(1_000), 8_000).size == 8_000


def test_the_client_tells_how_an_answer_ended() -> None:
    async def ask(answer: bytes) -> Reply:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
            port: int = listening.sockets[0].getsockname()[1]
            return await exchange(port, [request(port, "/embed")], 5)

    ends = {
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok": "200",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 413 x\r\nContent-Length: 0\r\n\r\n": "413",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok": "200 cut",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n": "200",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n": "200 cut",
        b"": "no answer cut",
    }
    assert {answer: asyncio.run(ask(answer)).name for answer in ends} == ends


def test_a_server_that_never_answers_is_late() -> None:
    async def ask() -> Reply:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(handle, "127.0.0.1", 0) as listening:
            port: int = listening.sockets[0].getsockname()[1]
            reply = await exchange(port, [request(port, "/embed")], 0.1)
            await asyncio.sleep(0.1)  # the other side closes, too
            return reply

    assert asyncio.run(ask()).name == "no answer late"


@pytest.mark.parametrize(
    ("reply", "seen", "kept"),
    [
        (Reply(413, "whole", 1, 100), CALM, True),
        (Reply(200, "whole", 1, 100), CALM, False),
        (Reply(413, "cut", 1, 100), CALM, False),
        (Reply(413, "whole", 9, 100), CALM, False),
        (Reply(0, "cut", 1, 0), CALM, False),
        (Reply(413, "whole", 1, 100), ServerUsage(900, 100, 8, 8, 0.1, False), False),
        (Reply(413, "whole", 1, 100), ServerUsage(110, 100, 8, 8, 2.0, False), False),
        (Reply(413, "whole", 1, 100), ServerUsage(110, 100, 40, 8, 0.1, False), False),
        (Reply(413, "whole", 1, 100), ServerUsage(110, 100, 8, 8, 0.1, True), False),
    ],
)
def test_a_cost_keeps_its_bound_or_not(reply: Reply, seen: ServerUsage, kept: bool) -> None:
    assert AttackCost([reply], seen, disk_mib=0).kept(Bound()) is kept


def test_a_closed_connection_may_be_an_answer_but_silence_is_none() -> None:
    bound = Bound(frozenset({0, 431}))
    assert AttackCost([Reply(0, "reset", 1, 0)], CALM, 0).kept(bound)
    assert not AttackCost([Reply(0, "late", 1, 0)], CALM, 0).kept(bound)
    assert not AttackCost([], CALM, 0).kept(bound)


class Hasty(HeadDeadline):
    """Waits less long for the end of a head."""

    head_seconds = 0.5


async def attacked(number: int, port: int) -> list[Reply]:
    return await ATTACKS[number].send(Target(port, ["fake"], scale=0.001))


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=[row.name for row in ATTACKS])
def test_every_attack_ends_with_replies(number: int) -> None:
    material()
    with live(fake_app(FakeModel(), max_seconds=200), Hasty) as port:
        replies = asyncio.run(attacked(number, port))
    assert replies
    assert all(reply.end != "late" for reply in replies)


def test_rows_have_names_of_their_own() -> None:
    names = [row.name for row in (*ATTACKS, *PROMISES)]
    assert len(set(names)) == len(names)


class Late(BaseHTTPRequestHandler):
    """Answers every question late."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        time.sleep(0.3)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


def test_a_watch_sees_stalls_and_memory() -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Late) as late:
        threading.Thread(target=late.serve_forever).start()
        try:
            watch = ServerWatch(os.getpid(), late.server_port, limit_mib=1e6)
            time.sleep(0.5)
            seen = watch.end()
        finally:
            late.shutdown()
    assert seen.stall >= 0.29
    assert seen.peak_mib >= seen.start_mib > 10
    assert seen.threads >= seen.start_threads >= 2
    assert not seen.killed


def test_a_watch_kills_what_grows_beyond_its_limit() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        watch = ServerWatch(child.pid, free_port(), limit_mib=1)
        assert child.wait(60) < 0
        seen = watch.end()
    finally:
        child.kill()
        child.wait()
    assert seen.killed
    assert seen.peak_mib > 1


def test_a_server_is_another_process_with_settings_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDER_MAX_BYTES", "1")
    monkeypatch.setenv("EMBEDDER_WEIGHTS_DIR", "kept")
    launch = Launch({"MODELS": "mn04_as"}, tree=tmp_path, cache=tmp_path / "cache")
    environment = launch.environment(8123)
    assert "EMBEDDER_MAX_BYTES" not in environment
    assert environment["EMBEDDER_WEIGHTS_DIR"] == "kept"
    assert environment["EMBEDDER_PORT"] == "8123"
    assert environment["EMBEDDER_MODELS"] == "mn04_as"
    assert environment["PYTHONPATH"] == str(tmp_path)


def test_a_server_that_ends_at_once_is_an_error() -> None:
    with pytest.raises(BadRequest, match="did not get ready"), server(Launch({"PORT": "x"})):
        pass


def test_the_command_attacks_a_server_and_shows_the_run_before(tmp_path: Path) -> None:
    row = "taps=mel ×600: a scene of 76 800 values"
    earlier = tmp_path / "before.json"
    earlier.write_text(json.dumps({"rows": [{"row": row, "measured": "much"}]}), "utf-8")
    out = tmp_path / "after.json"
    words = ["bench", "abuse", "--only", row, "--before", str(earlier)]
    result = CliRunner().invoke(app, [*words, "--json", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    assert f"| {row} | 200/400/413; 5 s; 150 MiB; stall 0.5 s | much |" in result.stdout
    written = json.loads(out.read_text("utf-8"))["rows"]
    assert [entry["row"] for entry in written] == [row]
    assert written[0]["measured"]


def test_a_row_that_there_is_not_is_an_error() -> None:
    result = CliRunner().invoke(app, ["bench", "abuse", "--only", "nothing"])
    assert result.exit_code == 2
    assert "no row is named nothing" in result.stderr
