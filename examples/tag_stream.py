"""Tag sound while it comes in, two seconds at a time: tag_stream.py long.flac

A microphone works the same way, by anything that yields float32 blocks at the model's sample rate.
"""

import sys

from embedder import AudioEmbedder, stream_audio

SECONDS = 2


def main(source: str) -> None:
    """Print the best label of each block with its time."""
    model = AudioEmbedder.load("sprout04")
    rate = model.sample_rate
    for number, block in enumerate(stream_audio(source, rate, block_seconds=SECONDS)):
        [(label, probability)] = model.top_tags(block, 1, sample_rate=rate)
        print(f"{number * SECONDS:4d} s  {probability:.3f}  {label}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
