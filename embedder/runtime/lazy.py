"""The engine of a model: built at its first use, and again when weights or device have changed."""

from __future__ import annotations

from typing import Any, Final, NamedTuple
from weakref import WeakSet

from embedder.frontend import LogMel
from embedder.networks.backbone import Backbone
from embedder.runtime import create
from embedder.runtime.base import Engine, EngineInput
from embedder.runtime.forks import ProcessLock, in_child, never_free
from embedder.runtime.state import ChangeWatch, fingerprint

_building: Final = ProcessLock()


class _Built(NamedTuple):
    choice: str
    watch: ChangeWatch  # over the backbone that the engine was built from
    engine: Engine


class LazyEngine:
    """Builds a backbone's engine at its first use, and again when it has changed or moved.

    A backbone with hooks runs as the torch module that it is: no other engine would call them.
    """

    def __init__(self, frontend: LogMel, backbone: Backbone, windows: tuple[int, ...]) -> None:
        self.choice = "eager"
        self._frontend = frontend
        self._backbone = backbone
        self._windows = windows
        self._identity = ""
        self._built: _Built | None = None

    def identify(self) -> None:
        """Note that the weights now are those of a file, so that engines may store their networks.

        A network with other weights, however it came to them, is not stored.
        """
        self._identity = fingerprint(self._backbone)

    def renew(self) -> None:
        """Build the engine again at its next use, whether or not anything has changed."""
        self._built = None

    def engine(self) -> Engine:
        """The engine for the weights as they are now, built here if there is none."""
        built = self._built
        if built is None or not self._is_valid(built):
            with _building:  # threads that come at the same time share what the first one builds
                built = self._built
                if built is None or not self._is_valid(built):
                    _users.add(self)
                    built = self._built = self._build()
        return built.engine

    def _is_valid(self, built: _Built) -> bool:
        return built.choice == self.choice and built.watch.unchanged()

    def leave(self) -> None:
        """Build a new engine at the next use; the present one can neither run nor be freed."""
        if self._built is not None:
            never_free(self._built)
        self._built = None

    def _build(self) -> _Built:
        choice, watch = self.choice, ChangeWatch(self._backbone)
        network = EngineInput(
            self._frontend, self._backbone, watch.device, self._windows, self._identity
        )
        return _Built(choice, watch, create("eager" if watch.hooked else choice, network))

    def __getstate__(self) -> dict[str, Any]:
        """Copies build an engine of their own."""
        return {**self.__dict__, "_built": None}


_users: Final[WeakSet[LazyEngine]] = WeakSet()  # those that have built an engine


def _leave_engines() -> None:
    for user in list(_users):
        user.leave()


in_child(_leave_engines)
