"""`python -m embedder` is `embedder`."""

from __future__ import annotations

import sys

from embedder.cli import main

if __name__ == "__main__":
    sys.exit(main())
