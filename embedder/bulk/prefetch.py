"""Decode files ahead of the network, in worker processes.

           ┌─ lane: worker process ─ pipe ─ thread ─ queue ─┐
    paths ─┼─ lane: ...                                     ┼─ (path, blocks), in the order given
           └─ lane: ...                                     ┘

File i goes to lane i mod n, so order needs no sorting, and a lane holds a bounded number of
blocks, so memory does not grow with files or their lengths. A file that kills its worker fails
alone: the lane starts another. Workers import `embedder.audio` and no torch.
"""

from __future__ import annotations

import logging
import multiprocessing
import queue
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Final, TypeAlias

import numpy as np

from embedder.allocator import keep_freed_memory
from embedder.audio import Samples, stream_audio
from embedder.errors import BadAudio, EmbedderError
from embedder.threads import available_cores

BLOCK_SECONDS: Final = 10.0
AHEAD: Final = 20  # messages a lane holds ready: ten short files, or 26 MB of a long one at 32 kHz

# One block; then what ends the file: nothing, or the reason why it failed.
Message: TypeAlias = Samples | Exception | None


class Blocks(Iterator[Samples]):
    """The decoded blocks of one file; a file that fails raises where it does."""

    def __init__(self, messages: queue.Queue[Message]) -> None:
        self._messages = messages
        self._ended = False

    def __next__(self) -> Samples:
        message = None if self._ended else self._messages.get()
        if isinstance(message, np.ndarray):
            return message
        self._ended = True
        if message is not None:
            raise message
        raise StopIteration


def decode_ahead(
    paths: Sequence[str], sample_rate: int, workers: int
) -> Generator[tuple[str, Iterator[Samples]], None, None]:
    """Every path with its blocks of 10 s, in order; take a file's blocks before the next file.

    Blocks are float32 [S] at `sample_rate`, the last one shorter. They raise BadAudio. With no
    workers, or one path, decoding happens here, as the blocks are taken.
    """
    if not workers or len(paths) < 2:
        for path in paths:
            yield path, stream_audio(path, sample_rate, block_seconds=BLOCK_SECONDS)
        return
    n_lanes = min(workers, len(paths))
    lanes = [_Lane(paths[first::n_lanes], sample_rate) for first in range(n_lanes)]
    try:
        for lane in lanes:
            lane.start()
        for index, path in enumerate(paths):
            blocks = Blocks(lanes[index % n_lanes].messages)
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
                self._put(error)

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
            reason = self._receive().decode()
        except (EOFError, OSError):  # the latter where it died amid a block
            self._worker.join()
            reason = f"its decoder died with exit code {self._worker.exitcode}"
            self._pipe.close()
            self._start_worker()
        self._put(BadAudio(reason) if reason else None)

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
    """A worker's life: a path comes; blocks, an empty message and the error's text go."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = logging.StreamHandler()
    logging.getLogger().addHandler(log)
    # A closed pipe: the parent has gone, or wants no more.
    with suppress(EOFError, ConnectionError):
        while True:
            path: str = pipe.recv()
            log.setFormatter(logging.Formatter(f"{path.replace('%', '%%')}: %(message)s"))
            reason = ""
            try:
                for block in stream_audio(path, sample_rate, block_seconds=BLOCK_SECONDS):
                    pipe.send_bytes(block.data)
            except EmbedderError as error:
                reason = str(error)
            except ConnectionError:
                raise
            except Exception as error:  # one file, whatever is wrong with it, fails only itself
                reason = f"{type(error).__name__}: {error}"
            pipe.send_bytes(b"")
            pipe.send_bytes(reason.encode("utf-8", "replace"))
