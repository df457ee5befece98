"""The engine of weights as they are now, where they are now."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final, NamedTuple
from weakref import WeakSet

import torch

from embedder.frontend import LogMel
from embedder.runtime import Network, Runtime, create
from embedder.runtime.forks import ProcessLock, in_child, never_free

_version_of: Final = attrgetter("_version")
_making: Final = ProcessLock()


class _State(NamedTuple):
    choice: str
    device: torch.device
    version: int  # of the weights: grows whenever one is written to


class Current:
    """Makes a backbone's engine at its first use, and anew when weights or device have changed."""

    def __init__(self, frontend: LogMel, backbone: Any, windows: tuple[int, ...]) -> None:
        self.choice = "eager"
        self._frontend = frontend
        self._backbone = backbone
        self._windows = windows
        self._weights = tuple(backbone.parameters())
        self._identity = ""
        self._identified = -1  # the version that `_identity` is of
        self._made: tuple[_State, Runtime] | None = None

    def identify(self, identity: str) -> None:
        """Say what the weights are, as long as nobody writes to them."""
        self._identity = identity
        self._identified = self._version()

    def runtime(self) -> Runtime:
        """What runs the network."""
        state = _State(self.choice, self._weights[0].device, self._version())
        made = self._made
        if made is None or made[0] != state:
            with _making:  # threads that come at the same time share what the first one makes
                made = self._made
                if made is None or made[0] != state:
                    _users.add(self)
                    made = self._made = (state, self._engine(state))
        return made[1]

    def leave(self) -> None:
        """Make a new engine at the next need. The one there is can neither run nor be freed."""
        if self._made is not None:
            never_free(self._made)
        self._made = None

    def _engine(self, state: _State) -> Runtime:
        identity = self._identity if state.version == self._identified else ""
        network = Network(self._frontend, self._backbone, state.device, self._windows, identity)
        return create(state.choice, network)

    def _version(self) -> int:
        return sum(map(_version_of, self._weights))

    def __getstate__(self) -> dict[str, Any]:
        """Copies make an engine of their own."""
        return {**self.__dict__, "_made": None}


_users: Final[WeakSet[Current]] = WeakSet()  # those that have made an engine


def _leave_engines() -> None:
    for current in list(_users):
        current.leave()


in_child(_leave_engines)
