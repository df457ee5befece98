"""How a server starts and ends, as a process."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from service.listening import CannotListen, listen
from service.serving import Exit
from tests.service_kit import free_port, until
from tests.shared import ROOT


@contextmanager
def server(*arguments: str, **variables: object) -> Iterator[subprocess.Popen[str]]:
    """`python -m service` with these EMBEDDER_ variables."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("EMBEDDER_")}
    given = {f"EMBEDDER_{name.upper()}": str(value) for name, value in variables.items()}
    command = [sys.executable, "-m", *(arguments or ("service",))]
    environment = {**ours, "EMBEDDER_DECODE_WORKERS": "1", **given}
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it logged."""
    _, log = process.communicate(timeout=120)
    return process.returncode, log


def status(port: int) -> int:
    """What /readyz answers on a connection of its own; 0 where none is accepted."""
    try:
        answer = httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False, timeout=60)
    except httpx.TransportError:
        return 0
    return answer.status_code


@contextmanager
def taken(host: str = "127.0.0.1") -> Iterator[int]:
    """A port that somebody listens on."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as other:
        other.bind((host, 0))
        other.listen()
        yield other.getsockname()[1]


@pytest.mark.parametrize(("command", "workers"), [((), 2), (("embedder", "serve"), 1)])
def test_a_port_in_use_is_a_line_of_advice_before_anything_is_loaded(
    command: Sequence[str], workers: int
) -> None:
    with taken() as port, server(*command, port=port, workers=workers) as process:
        code, log = end(process)
    assert code == Exit.ADDRESS
    (line,) = log.splitlines()
    assert f"port {port} of 127.0.0.1 is in use" in line
    assert "EMBEDDER_PORT or --port" in line
    assert f"lsof -nP -iTCP:{port}" in line


@pytest.mark.parametrize(
    ("host", "advice"),
    [
        ("192.0.2.1", "no address of this machine"),  # TEST-NET, which nobody has
        ("no.such.host.invalid", "cannot listen on port 0 of no.such.host.invalid"),
    ],
)
def test_a_host_that_is_not_ours_is_refused_with_advice(host: str, advice: str) -> None:
    with pytest.raises(CannotListen, match=advice) as refused:
        listen(host, 0)
    assert "EMBEDDER_HOST" in str(refused.value)


def test_a_privileged_port_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    class Forbidden(socket.socket):
        def bind(self, _: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("service.listening.socket.socket", Forbidden)
    with pytest.raises(CannotListen, match="may not listen on port 80"):
        listen("127.0.0.1", 80)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6")
def test_ipv6_is_listened_on_and_in_use_like_any_other() -> None:
    try:
        with taken("::1") as port, pytest.raises(CannotListen, match=f"port {port} of ::1 is in"):
            listen("::1", port)
    except OSError:
        pytest.skip("no IPv6 loopback")
    (listening,) = listen("::1", 0)
    with closing(listening), socket.create_connection(listening.getsockname()[:2]):
        pass


def test_a_port_is_ours_from_the_first_moment() -> None:
    (first,) = listen("127.0.0.1", 0)
    with closing(first), pytest.raises(CannotListen, match="in use"):
        listen("127.0.0.1", first.getsockname()[1])


def test_all_addresses_of_a_name_are_listened_on_at_one_port() -> None:
    sockets = listen("localhost", 0)
    ports = {listening.getsockname()[1] for listening in sockets}
    for listening in sockets:
        listening.close()
    assert len(ports) == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_a_default_model_that_cannot_be_had_ends_the_server(workers: int) -> None:
    with server(port=0, workers=workers, weights="/nowhere.pt") as process:
        code, log = end(process)
    assert code == Exit.UNABLE
    reasons = [line for line in log.splitlines() if "/nowhere.pt" in line]
    assert len(reasons) == workers
    assert "name an existing checkpoint" in reasons[0]
    assert "Traceback" not in log
    assert "serving" not in log


def test_a_setting_that_makes_no_sense_is_one_line() -> None:
    with server(port="many") as process:
        code, log = end(process)
    assert code == Exit.SETTINGS
    (line,) = log.splitlines()
    assert "EMBEDDER_PORT" in line


@pytest.mark.parametrize(("sig", "workers"), [(signal.SIGTERM, 1), (signal.SIGINT, 2)])
def test_a_signal_ends_a_server_with_status_0(sig: signal.Signals, workers: int) -> None:
    port = free_port()
    with server(port=port, workers=workers) as process:
        until(lambda: status(port), 200, seconds=120)
        # Whoever accepts is ready: no process accepts before its model is.
        assert {status(port) for _ in range(30)} == {200}
        process.send_signal(sig)
        code, log = end(process)
    assert code == Exit.STOPPED
    assert "Traceback" not in log


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_second_signal_does_not_wait_for_requests(workers: int) -> None:
    port = free_port()
    with server(port=port, workers=workers) as process:
        until(lambda: status(port), 200, seconds=120)
        with socket.create_connection(("127.0.0.1", port)) as slow:
            slow.sendall(b"POST /embed HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\nRIFF")
            until(lambda: status(port), 200)  # the server has seen the request before
            process.send_signal(signal.SIGTERM)
            until(lambda: status(port), 0)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            code, _ = end(process)
    assert code == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced() -> None:
    port = free_port()
    with server(port=port, workers=2) as process:
        until(lambda: status(port), 200, seconds=120)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        if not children.is_file():
            pytest.skip("this kernel does not list children")
        before = _workers(children)
        os.kill(before[0], signal.SIGKILL)
        until(lambda: len(set(_workers(children)) - set(before)), 1)
        assert status(port) == 200
        process.send_signal(signal.SIGTERM)
        code, log = end(process)
    assert code == Exit.STOPPED
    assert f"server process {before[0]} ended with -9" in log


def _workers(children: Path) -> list[int]:
    """Process ids of the server processes, not of multiprocessing's own helper."""
    pids = [int(pid) for pid in children.read_text().split()]
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
