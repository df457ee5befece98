"""Send a recording to a server: ask_server.py dog.wav http://127.0.0.1:8000"""

import io
import sys
import time
from pathlib import Path

import httpx
import numpy as np


def main(path: str, address: str) -> None:
    """Print the best tags, then the shape of an embedding that is sent as an array."""
    audio = Path(path).read_bytes()
    with httpx.Client(base_url=address, timeout=60) as client:
        answer = client.post("/tags", content=audio, params={"top_k": 3})
        while answer.status_code == 429:  # busy: it says when to come back
            time.sleep(float(answer.headers["Retry-After"]))
            answer = client.post("/tags", content=audio, params={"top_k": 3})
        answer.raise_for_status()
        print(answer.json()["tags"])
        array = client.post("/embed", content=audio, headers={"Accept": "application/x-npy"})
        print(np.load(io.BytesIO(array.raise_for_status().content)).shape)


if __name__ == "__main__":
    main(*sys.argv[1:])
