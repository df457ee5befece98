"""Train a classifier on a folder of folders, one a class: train_probe.py sounds/ my.safetensors

The file it writes is a model like any other. Needs the extra `train`.
"""

import sys
from pathlib import Path

from embedder import AudioEmbedder
from eval.data.labelled import open_dataset
from eval.training.probe import embed, fit_probe


def main(folder: str, output: str) -> None:
    """Train, save, and print what the classifier says of the first recording of each class."""
    model = AudioEmbedder.load("sprout04")
    dataset = open_dataset(Path(folder))
    vectors = embed(model, dataset.waves(model.sample_rate))  # the network itself stays as it is
    fit_probe(vectors, dataset, model).save(Path(output))

    trained = AudioEmbedder.load(output)
    for label in trained.labels:
        first = next(example for example in dataset.examples if label in example.labels)
        print(f"{label}: {trained.top_tags(first.path, 2)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
