"""The engine of weights as they are now, where they are now."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from weakref import WeakSet

from embedder.frontend import LogMel
from embedder.networks.backbone import Backbone
from embedder.runtime import create
from embedder.runtime.base import EngineInput, Runtime
from embedder.runtime.forks import ProcessLock, in_child, never_free
from embedder.runtime.state import Watch, fingerprint

_making: Final = ProcessLock()


class _Made(NamedTuple):
    choice: str
    watch: Watch  # of the backbone that the engine was made of
    runtime: Runtime


class LazyEngine:
    """Makes a backbone's engine at its first use, and anew when it has changed or moved.

    A backbone with hooks runs as the torch module that it is: else nobody would call them.
    """

    def __init__(self, frontend: LogMel, backbone: Backbone, windows: tuple[int, ...]) -> None:
        self.choice = "eager"
        self._frontend = frontend
        self._backbone = backbone
        self._windows = windows
        self._identity = ""
        self._made: _Made | None = None

    def identify(self) -> None:
        """Note that the numbers are those of a file now: engines may keep what they make of them.

        What is made of other numbers, however they came about, is not kept.
        """
        self._identity = fingerprint(self._backbone)

    def renew(self) -> None:
        """Have the engine made anew, whatever has changed."""
        self._made = None

    def runtime(self) -> Runtime:
        """What runs the network."""
        made = self._made
        if made is None or not self._stands(made):
            with _making:  # threads that come at the same time share what the first one makes
                made = self._made
                if made is None or not self._stands(made):
                    _users.add(self)
                    made = self._made = self._make()
        return made.runtime

    def _stands(self, made: _Made) -> bool:
        return made.choice == self.choice and made.watch.unchanged()

    def leave(self) -> None:
        """Make a new engine at the next need. The one there is can neither run nor be freed."""
        if self._made is not None:
            never_free(self._made)
        self._made = None

    def _make(self) -> _Made:
        choice, watch = self.choice, Watch(self._backbone)
        network = EngineInput(
            self._frontend, self._backbone, watch.device, self._windows, self._identity
        )
        return _Made(choice, watch, create("eager" if watch.hooked else choice, network))

    def __getstate__(self) -> dict[str, Any]:
        """Copies make an engine of their own."""
        return {**self.__dict__, "_made": None}


_users: Final[WeakSet[LazyEngine]] = WeakSet()  # those that have made an engine


def _leave_engines() -> None:
    for current in list(_users):
        current.leave()


in_child(_leave_engines)
