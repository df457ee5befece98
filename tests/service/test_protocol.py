"""What a connection may cost before, beside and after its requests."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.protocol import MAX_FIELDS, MAX_HEAD_BYTES, MAX_PIPELINED, BoundedHttp
from tests.service_kit import (
    RATE,
    FakeModel,
    client_of,
    connected,
    everything,
    fake_app,
    live,
    state_of,
    wav,
)

GET = b"GET /livez HTTP/1.1\r\nhost: x\r\n"
CHUNKED = b"POST /embed HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with live(fake_app()) as served:
        yield served


def exchange(port: int, *pieces: bytes) -> bytes:
    """What the server sends until it closes, having got all pieces or as many as it takes."""
    with connected(port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                connection.sendall(piece)
        return everything(connection)


def assert_refused(answer: bytes, status: int, code: str) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    problem = json.loads(body)
    assert (problem["status"], problem["code"]) == (status, code)


def short_fields(count: int) -> bytes:
    return b"".join(b"a%d: b\r\n" % number for number in range(count))


@pytest.mark.parametrize(
    "fields",
    [
        [short_fields(MAX_FIELDS)],
        [short_fields(1000)] * 200,
        [b"a: " + b"b" * MAX_HEAD_BYTES + b"\r\n"],
        [b"a: ", *[b"b" * 65536] * 100],
        [b"a" * 65536] * 100,
    ],
    ids=["fields", "endless fields", "value", "endless value", "endless name"],
)
def test_a_head_that_is_too_large_is_refused(port: int, fields: list[bytes]) -> None:
    assert_refused(exchange(port, GET, *fields, b"\r\n"), 431, "head_too_large")


def test_a_head_may_have_so_many_fields(port: int) -> None:
    close = b"connection: close\r\n\r\n"
    answer = exchange(port, GET, short_fields(MAX_FIELDS - 2), close)
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_url_that_is_too_long_is_refused(port: int) -> None:
    answer = exchange(port, b"GET /livez?", b"a" * MAX_HEAD_BYTES, b" HTTP/1.1\r\n\r\n")
    assert_refused(answer, 414, "url_too_long")


@pytest.mark.parametrize(
    "rest",
    [
        [b"0\r\n", short_fields(MAX_FIELDS + 1)],
        [b"0\r\na: ", *[b"b" * 65536] * 100],
        [b"4;", *[b"b" * 65536] * 100],
    ],
    ids=["trailers", "endless trailer", "endless extension"],
)
def test_what_is_no_body_is_bounded_in_a_body_too(port: int, rest: list[bytes]) -> None:
    answer = exchange(port, CHUNKED, b"4\r\nRIFF\r\n", *rest, b"\r\n\r\n")
    assert_refused(answer, 431, "head_too_large")


def test_trailers_are_read_over(port: int) -> None:
    clip = wav()
    body = b"%x\r\n%b\r\n0\r\n%b\r\n" % (len(clip), clip, short_fields(MAX_FIELDS))
    with connected(port) as connection:
        connection.sendall(CHUNKED + body)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_what_is_no_http_gets_a_problem_document(port: int) -> None:
    for junk in (b"\x16\x03\x01\x02", b"GET / HTTP/9.9\r\n\r\n"):
        assert_refused(exchange(port, junk), 400, "bad_request")
    assert_refused(exchange(port, CHUNKED, b"nonsense\r\n"), 400, "bad_request")


def test_requests_in_a_row_are_answered_up_to_a_number(port: int) -> None:
    last = GET + b"connection: close\r\n\r\n"
    few = exchange(port, (GET + b"\r\n") * (MAX_PIPELINED - 1) + last)
    assert few.count(b"HTTP/1.1 200 ") == MAX_PIPELINED
    many = exchange(port, (GET + b"\r\n") * 5000)
    assert many.count(b"HTTP/1.1 200 ") == many.count(b"HTTP/1.1") == MAX_PIPELINED + 1
    assert many.count(b"connection: close") == 1


def test_what_follows_nonsense_is_not_answered_and_what_precedes_it_is(port: int) -> None:
    answer = exchange(port, GET + b"\r\n" + b"nonsense\r\n\r\n" + GET + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.count(b"HTTP/1.1") == 1


def test_other_protocols_are_not_spoken(port: int) -> None:
    upgrade = b"connection: upgrade, close\r\nupgrade: %b\r\nsec-websocket-version: 13\r\n\r\n"
    for name in (b"websocket", b"h2c"):
        answer = exchange(port, GET, upgrade % name)
        assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_refusal_reaches_who_sends_a_large_body_to_its_end() -> None:
    with live(fake_app(api_key="sesame")) as port:
        piece = bytes(1 << 20)
        head = b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (20 * len(piece))
        with connected(port) as connection:
            connection.sendall(head)
            for _ in range(20):
                connection.sendall(piece)
                time.sleep(0.002)
            answer = everything(connection)
        assert_refused(answer, 401, "unauthorized")


def test_a_refusal_does_not_wait_for_a_small_body_and_the_connection_goes_on() -> None:
    with live(fake_app(api_key="sesame")) as port, connected(port) as connection:
        connection.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\n")
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 401 ")
        assert b"connection: close" not in answer
        connection.sendall(b"RIFFRIFF" + GET + b"\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")


def test_who_waits_for_100_continue_and_is_refused_gets_a_new_connection() -> None:
    with live(fake_app(api_key="sesame")) as port:
        head = (
            b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\nexpect: 100-continue\r\n\r\n"
        )
        assert_refused(exchange(port, head), 401, "unauthorized")


def test_what_is_left_of_a_request_after_its_answer_is_due_as_a_head_is() -> None:
    class Hasty(BoundedHttp):
        head_seconds = 0.3

    with live(fake_app(api_key="sesame"), Hasty) as port:
        with connected(port) as connection:
            connection.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 9000\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")
            assert trickled(connection, b"x") == b""
        with connected(port) as connection:
            connection.sendall(GET + b"\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
            assert trickled(connection, b"\r\n") == b""


def trickled(connection: socket.socket, piece: bytes) -> bytes:
    """What comes before the end of a connection on which a little is sent now and then."""
    ended = threading.Event()

    def trickle() -> None:
        with contextlib.suppress(OSError):
            while not ended.wait(0.05):
                connection.sendall(piece)

    sender = threading.Thread(target=trickle)
    sender.start()
    try:
        return everything(connection)
    except ConnectionResetError:
        return b""
    finally:
        ended.set()
        sender.join()


def test_a_client_that_does_not_read_is_cut_off_and_its_answer_forgotten() -> None:
    class Hasty(BoundedHttp):
        send_seconds = 0.3

    class Wide(FakeModel):
        def __init__(self) -> None:
            super().__init__()
            self.tap_sizes = {"mel": 4000}

        def window_features(self, batch: Any, taps: Any) -> Any:
            features = super().window_features(batch, taps)
            return {tap: values.repeat(1, 1000) for tap, values in features.items()}

    app = fake_app(Wide())
    clip = wav(20 * RATE)
    with live(app, Hasty) as port, connected(port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = b"POST /timestamps HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(clip)
        connection.sendall(head + clip)
        held = state_of(app).pipeline.answers
        deadline = time.monotonic() + 30
        seen = 0
        while not seen or held.held:
            seen = max(seen, held.held)
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert seen == 4 * 401 * 4000
        with client_of(port) as client:
            assert client.get("/livez").status_code == 200


def ask(connection: socket.socket) -> None:
    """Send a request and read its whole answer, which may arrive in pieces."""
    connection.sendall(GET + b"\r\n")
    answer = b""
    while not answer.endswith(b"}"):
        piece = connection.recv(65536)
        assert piece, answer
        answer += piece
    assert answer.startswith(b"HTTP/1.1 200 ")


def test_the_connection_that_is_idle_longest_makes_room() -> None:
    class Narrow(BoundedHttp):
        max_connections = 3

    with live(fake_app(), Narrow) as port, contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(port)) for _ in range(3)]
        for connection in reversed(idle):
            ask(connection)
        ask(stack.enter_context(connected(port)))
        assert everything(idle[2]) == b""
        ask(idle[0])
