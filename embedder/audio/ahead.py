"""Decode files ahead of the network, in worker processes.

           ┌─ lane: worker process ─ pipe ─ thread ─ queue ─┐
    paths ─┼─ lane: ...                                     ┼─ (path, blocks), in the order given
           └─ lane: ...                                     ┘

File i goes to lane i mod n, so that the order needs no sorting. A lane holds a bounded number of
blocks, so that memory does not grow with the number of files or their lengths. If a file kills its
worker, only this file fails: the lane starts another worker. Workers import
`embedder.audio.decode`, and no torch.
"""

from __future__ import annotations

import json
import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Final, TypeAlias

import numpy as np

from embedder.audio.decode import Samples, stream_audio
from embedder.errors import BadAudio, EmbedderError
from embedder.process import available_cores, keep_freed_memory

BLOCK_SECONDS: Final = 10.0
# How many messages a lane holds ready: ten short files, or 26 MB of a long one at 32 kHz.
AHEAD: Final = 20


@dataclass(frozen=True, slots=True)
class End:
    """The last message of a file."""

    error: Exception | None = None  # why the file failed, if it did
    note: str | None = None  # what is missing of a file that did not fail


Message: TypeAlias = Samples | End


class Blocks(Iterator[Samples]):
    """The decoded blocks of one file, float32 [S]; if the file fails, an error is raised.

    After the last block, `note` says what is missing of a file that did not fail.
    """

    def __init__(self, messages: Iterator[Message]) -> None:
        self.note: str | None = None
        self._messages = messages
        self._ended = False

    def __next__(self) -> Samples:
        if self._ended:
            raise StopIteration
        message = next(self._messages)
        if not isinstance(message, End):
            return message
        self._ended, self.note = True, message.note
        raise StopIteration if message.error is None else message.error


def decode_ahead(
    paths: Sequence[str], sample_rate: int, workers: int
) -> Generator[tuple[str, Blocks], None, None]:
    """Yield every path with its blocks of 10 s, in order.

    Take a file's blocks before the next file: what is left of them is then dropped. Blocks are
    float32 [S] at `sample_rate`, the last one shorter; taking one may raise BadAudio. Without
    workers, or with one path, files are decoded in this process as their blocks are taken.
    """
    if not workers or len(paths) < 2:
        for path in paths:
            yield path, Blocks(_decoded(path, sample_rate))
        return
    n_lanes = min(workers, len(paths))
    lanes = [_Lane(paths[first::n_lanes], sample_rate) for first in range(n_lanes)]
    try:
        for lane in lanes:
            lane.start()
        for index, path in enumerate(paths):
            blocks = Blocks(lanes[index % n_lanes].received())
            yield path, blocks
            with suppress(EmbedderError):
                for _ in blocks:  # the lane's queue must be past this file
                    pass
    finally:
        for lane in lanes:
            lane.stop()


def default_workers() -> int:
    """Half of the cores that this process may use, 1 to 8."""
    return min(8, max(1, available_cores() // 2))


class _Stopped(Exception):
    """The consumer has stopped the lane."""


class _Lane(threading.Thread):
    """One worker process, and the thread that keeps its queue full."""

    def __init__(self, paths: Sequence[str], sample_rate: int) -> None:
        super().__init__(daemon=True)
        self.messages: queue.Queue[Message] = queue.Queue(AHEAD)
        self._paths = paths
        self._sample_rate = sample_rate
        self._stopping = threading.Event()

    def run(self) -> None:
        if sys.platform != "win32":
            # Workers inherit the blocked signal: Ctrl-C is for the main thread, which then stops
            # them. The tracker starts first, because its start would unblock the signal.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._decode_all()
        except _Stopped:
            pass
        except Exception as error:  # the thread that waits for messages must be told
            with suppress(_Stopped):
                self._put(End(error))

    def received(self) -> Iterator[Message]:
        """The messages of one file after the other, as they come; wait for each."""
        while True:
            yield self.messages.get()

    def stop(self) -> None:
        """End the worker and the thread, whatever they are doing."""
        self._stopping.set()
        if self.ident is not None:
            self.join()

    def _decode_all(self) -> None:
        self._start_worker()
        try:
            for path in self._paths:
                self._decode(path)
        finally:
            self._pipe.close()
            self._worker.terminate()
            self._worker.join()

    def _start_worker(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._worker = context.Process(target=_work, args=(theirs, self._sample_rate), daemon=True)
        self._worker.start()
        theirs.close()

    def _decode(self, path: str) -> None:
        try:
            self._pipe.send(path)
            while message := self._receive():
                self._put(np.frombuffer(message, np.float32))
            reason, note = json.loads(self._receive())
        except (EOFError, OSError):  # OSError if the worker died amid a block
            self._worker.join()
            reason, note = f"its decoder died with exit code {self._worker.exitcode}", None
            self._pipe.close()
            self._start_worker()
        self._put(End(BadAudio(reason) if reason else None, note))

    def _receive(self) -> bytes:
        while not self._pipe.poll(0.2):
            self._check_stopping()
        return self._pipe.recv_bytes()

    def _put(self, message: Message) -> None:
        while True:
            self._check_stopping()
            with suppress(queue.Full):
                return self.messages.put(message, timeout=0.2)

    def _check_stopping(self) -> None:
        if self._stopping.is_set():
            raise _Stopped


def _work(pipe: Connection, sample_rate: int) -> None:
    """What a worker does: for each path, send its blocks, an empty message, and how it ended."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # The parent has closed the pipe, or has ended.
    with suppress(EOFError, ConnectionError):
        while True:
            path: str = pipe.recv()
            reason, note = None, None
            try:
                for message in _decoded(path, sample_rate):
                    if isinstance(message, End):
                        note = message.note
                    else:
                        pipe.send_bytes(message.data)
            except EmbedderError as error:
                reason = str(error)
            except ConnectionError:
                raise
            except Exception as error:  # whatever is wrong with a file, only this file fails
                reason = f"{type(error).__name__}: {error}"
            pipe.send_bytes(b"")
            pipe.send_bytes(json.dumps([reason, note]).encode())


def _decoded(path: str, sample_rate: int) -> Iterator[Message]:
    """The blocks of a file and its last message; if the file fails, an error is raised."""
    notes: list[str] = []
    yield from stream_audio(path, sample_rate, block_seconds=BLOCK_SECONDS, on_damage=notes.append)
    yield End(note="; ".join(notes) or None)
