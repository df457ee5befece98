"""Which features an engine's graphs give, when any may be asked for."""

from __future__ import annotations

import threading
from typing import Final

from embedder.networks.backbone import Backbone
from embedder.networks.frame_mn import STRONG, FrameMN
from embedder.runtime.base import backbone_names

# Beside the first selection, these have graphs of their own: what tags and events are made of. More
# would take memory and threads without end, and seconds each; a graph of every feature takes 11 to
# 30 % longer to run than one of the usual ones.
LABELS: Final = (("logits",), (STRONG,))


class Selections:
    """The first selection that is asked for, labels alone, and one of everything for all others.

    What is part of a selection that has a graph comes from that graph.
    """

    def __init__(self, backbone: Backbone) -> None:
        frames = {STRONG} if isinstance(backbone, FrameMN) else set()
        self._every = backbone_names({*backbone.tap_sizes, *frames})
        self._own: set[tuple[str, ...]] = set()
        self._lock = threading.Lock()

    def is_own(self, names: tuple[str, ...]) -> bool:
        """Whether this selection has graphs of its own."""
        return names != self._every

    def with_all_of(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What a graph gives that gives these names."""
        with self._lock:
            enough = [own for own in self._own if set(names) <= set(own)]
            if enough:
                return min(enough, key=lambda own: (len(own), own))
            if self._own and names not in LABELS:
                return self._every
            self._own.add(names)
            return names
