"""Decode files ahead of the network, in worker processes.

           ┌─ lane: worker process ─ pipe ─ thread ─ queue ─┐
    paths ─┼─ lane: ...                                     ┼─ (path, blocks), in the order given
           └─ lane: ...                                     ┘

File i goes to lane i mod n, so order needs no sorting, and a lane holds a bounded number of
blocks, so memory does not grow with files or their lengths. A file that kills its worker fails
alone: the lane starts another. Workers import `embedder.audio.decode` and no torch.
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
AHEAD: Final = 20  # messages a lane holds ready: ten short files, or 26 MB of a long one at 32 kHz


@dataclass(frozen=True, slots=True)
class End:
    """What ends a file: why it failed, if it did, and what is to be said of it."""

    error: Exception | None = None
    note: str | None = None


Message: TypeAlias = Samples | End


class Blocks(Iterator[Samples]):
    """The decoded blocks of one file; a file that fails raises where it does.

    `note` says, after the last block, what is missing of a file that did not fail.
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
    """Every path with its blocks of 10 s, in order; take a file's blocks before the next file.

    Blocks are float32 [S] at `sample_rate`, the last one shorter. They raise BadAudio. With no
    workers, or one path, decoding happens here, as the blocks are taken.
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
                for _ in blocks:  # what the caller did not want
                    pass
    finally:
        for lane in lanes:
            lane.stop()


def default_workers() -> int:
    """Half of the cores that this process may use, 1 to 8."""
    return min(8, max(1, available_cores() // 2))


class _Stopped(Exception):
    """The consumer has gone."""


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
            # Workers inherit this: Ctrl-C is for the main thread, which then stops them. The
            # tracker is started before, because starting it would unblock the signal.
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._decode_all()
        except _Stopped:
            pass
        except Exception as error:  # whoever waits for messages must hear of it
            with suppress(_Stopped):
                self._put(End(error))

    def received(self) -> Iterator[Message]:
        """Messages as they come."""
        while True:
            yield self.messages.get()

    def stop(self) -> None:
        """End the worker and the thread, wherever they are."""
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
        except (EOFError, OSError):  # the latter where it died amid a block
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
    """A worker's life: a path comes; blocks, an empty message, and what ended the file go."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # A closed pipe: the parent has gone, or wants no more.
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
            except Exception as error:  # one file, whatever is wrong with it, fails only itself
                reason = f"{type(error).__name__}: {error}"
            pipe.send_bytes(b"")
            pipe.send_bytes(json.dumps([reason, note]).encode())


def _decoded(path: str, sample_rate: int) -> Iterator[Message]:
    """The blocks of a file and its end; a file that fails raises."""
    notes: list[str] = []
    yield from stream_audio(path, sample_rate, block_seconds=BLOCK_SECONDS, on_damage=notes.append)
    yield End(note="; ".join(notes) or None)
