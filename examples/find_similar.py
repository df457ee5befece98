"""Find the recordings that sound most like one: find_similar.py dog.wav recordings/*.wav"""

import sys

from embedder import AudioEmbedder

SHOWN = 5


def main(query: str, *paths: str) -> None:
    """Print the most similar recordings, the best first, with their cosine similarity."""
    model = AudioEmbedder.load("sprout04")
    vectors = model.scene([query, *paths])  # [1 + recordings, D]
    vectors = vectors - vectors.mean(0)  # what all of them share tells nothing
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(1e-9)
    similarity = vectors[1:] @ vectors[0]
    for index in similarity.argsort(descending=True)[:SHOWN].tolist():
        print(f"{similarity[index]:6.3f}  {paths[index]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
