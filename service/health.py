"""`python -m service.health` exits with code 0 if the server in this container is ready."""

from __future__ import annotations

import os
import sys
import urllib.error
import urllib.request

TIMEOUT_SECONDS = 4.0
_THIS_MACHINE = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    """Ask /readyz and return the exit code. The server is not imported, so that this is fast."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url(), timeout=TIMEOUT_SECONDS):
            return 0
    except (urllib.error.URLError, OSError) as error:
        sys.stderr.write(f"{url()}: {error}\n")
        return 1


def url() -> str:
    """Return the URL of /readyz at the server's address (loopback if that is every address)."""
    host = os.environ.get("EMBEDDER_HOST", "")
    host = _THIS_MACHINE.get(host, host)
    address = f"[{host}]" if ":" in host else host
    return f"http://{address}:{os.environ.get('EMBEDDER_PORT', '8000')}/readyz"


if __name__ == "__main__":
    sys.exit(main())
