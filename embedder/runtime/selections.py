"""Which features an engine's graphs give, when any may be asked for."""

from __future__ import annotations

import threading
from typing import Any, Final

from embedder.frame_mn import STRONG, FrameMN
from embedder.runtime import backbone_names

# Selections with graphs of their own. More would take memory and threads without end, and seconds
# each; a graph of every feature takes 11 to 30 % longer to run than one of the usual ones.
OWN: Final = 3


class Selections:
    """The first few selections that are asked for, and one of everything in place of all others."""

    def __init__(self, backbone: Any) -> None:
        frames = {STRONG} if isinstance(backbone, FrameMN) else set()
        self._every = backbone_names({*backbone.tap_sizes, *frames})
        self._own: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def with_all_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What a graph gives that gives these names."""
        with self._lock:
            if names not in self._own and len(self._own) == OWN:
                return self._every
            self._own.add(names)
            return names
