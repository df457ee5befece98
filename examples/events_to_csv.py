"""Write what sounds when in some recordings: events_to_csv.py MODEL events.csv street.wav more.flac

MODEL is a detector, such as fmn10_strong (downloaded at its first use).
"""

import csv
import sys
from pathlib import Path

from embedder import AudioEmbedder, EmbedderError


def main(name: str, output: str, *paths: str) -> None:
    """One row an event; a file that cannot be read is named and left out."""
    model = AudioEmbedder.load(name)
    with Path(output).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "onset_s", "offset_s", "label", "score"))
        for path in paths:
            try:
                [events] = model.events(path, threshold=0.3, min_duration_ms=80)
            except EmbedderError as error:
                print(f"{path}: {error}", file=sys.stderr)
                continue
            writer.writerows((path, e.onset_s, e.offset_s, e.label, e.score) for e in events)


if __name__ == "__main__":
    main(*sys.argv[1:])
