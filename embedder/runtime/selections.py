"""The selections of features that an engine makes graphs for, however many it is asked for."""

from __future__ import annotations

import threading
from typing import Final

from embedder.networks.backbone import Backbone
from embedder.networks.frame_mn import STRONG, FrameMN
from embedder.runtime.base import backbone_names

# Tags and events are made of these. Like the first selection that is asked for, they have graphs of
# their own. More graphs would take memory and threads without bound, and seconds each to make. A
# graph of every feature, in turn, takes 11 to 30 % longer to run than a graph of the usual ones.
LABELS: Final = (("logits",), (STRONG,))


class Selections:
    """The selections that have graphs: the first that is asked for, labels alone, and all features.

    Features that are part of such a selection come from its graph, and any others from the graph
    of all features.
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
        """The selection whose graph to run for these names, which has all of them."""
        with self._lock:
            larger = [own for own in self._own if set(names) <= set(own)]
            if larger:
                return min(larger, key=lambda own: (len(own), own))
            if self._own and names not in LABELS:
                return self._every
            self._own.add(names)
            return names
