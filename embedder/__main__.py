"""`python -m embedder` is `embedder`."""

from __future__ import annotations

import sys

from embedder.children import look_here_last
from embedder.cli import main

if __name__ == "__main__":
    look_here_last()
    sys.exit(main())
