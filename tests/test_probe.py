"""Probes on frozen embeddings, metrics, and the card's tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from embedder.errors import BadRequest, WeightsMismatch, WeightsNotFound
from embedder.model import AudioEmbedder
from eval.card import digits, insert, probe_accuracy
from eval.data import Dataset, Example
from eval.metrics import (
    accuracy,
    centred_cosine,
    mean_average_precision,
    relative_error,
)
from eval.probe import Probe, fit_probe

LABELS = ("bark", "meow", "moo")


@pytest.fixture(scope="module")
def embedder() -> AudioEmbedder:
    torch.manual_seed(0)
    return AudioEmbedder.build("mn01_as", taps=("mel",))


def dataset(count: int = 60, multi_label: bool = False) -> Dataset:
    examples = []
    for number in range(count):
        labels = {LABELS[number % 3]} | ({"moo"} if multi_label and number % 2 else set())
        examples.append(Example(Path(f"{number}.wav"), frozenset(labels), "ab"[number % 2]))
    return Dataset(LABELS, tuple(examples), multi_label)


def vectors(data: Dataset, size: int = 128) -> np.ndarray:
    """Embeddings that give their labels away."""
    rng = np.random.default_rng(0)
    made = rng.normal(size=(len(data.examples), size))
    made[:, :3] += 3 * data.targets()
    return made.astype(np.float32)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_a_probe_learns_and_survives_saving(
    embedder: AudioEmbedder, tmp_path: Path, kind: str, multi_label: bool
) -> None:
    data = dataset(multi_label=multi_label)
    x = vectors(data)
    probe = fit_probe(x, data, embedder, kind)
    assert mean_average_precision(probe.logits(x), data.targets()) > 0.95
    probe.save(tmp_path / "probe.safetensors")
    loaded = Probe.load(tmp_path / "probe.safetensors")
    np.testing.assert_array_equal(loaded.probabilities(x), probe.probabilities(x))
    assert (loaded.labels, loaded.taps, loaded.model) == (LABELS, ("mel",), "mn01_as")
    if not multi_label:
        np.testing.assert_allclose(loaded.probabilities(x).sum(1), 1, rtol=1e-5)
    ranked = loaded.tags(embedder, np.zeros((2, 16_000), np.float32))
    assert [set(tags) for tags in ranked] == [set(LABELS)] * 2
    assert list(ranked[0].values()) == sorted(ranked[0].values(), reverse=True)


def test_labels_that_training_never_saw_stay_unlikely(embedder: AudioEmbedder) -> None:
    data = dataset()
    seen = Dataset((*LABELS, "roar"), data.examples)
    probe = fit_probe(vectors(data), seen, embedder)
    assert probe.probabilities(vectors(data))[:, 3].max() < 1e-6


def test_what_is_no_probe_is_refused(embedder: AudioEmbedder, tmp_path: Path) -> None:
    with pytest.raises(WeightsNotFound):
        Probe.load(tmp_path / "none.safetensors")
    from safetensors.numpy import save_file

    save_file({"x": np.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(WeightsMismatch):
        Probe.load(tmp_path / "other.safetensors")
    with pytest.raises(BadRequest, match="'forest'"):
        fit_probe(vectors(dataset()), dataset(), embedder, "forest")


def test_average_precision_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    scores, targets = rng.normal(size=(50, 4)), (rng.random((50, 4)) < 0.3).astype(np.float32)
    targets[:, 3] = 0  # a class that never occurs does not count
    expected = np.mean([average_precision_score(targets[:, c], scores[:, c]) for c in range(3)])
    assert mean_average_precision(scores, targets) == pytest.approx(expected)
    targets[:5, 0] = np.nan
    expected = average_precision_score(targets[5:, 0], scores[5:, 0])
    assert mean_average_precision(scores[:, :1], targets[:, :1]) == pytest.approx(expected)


def test_distances_to_a_teacher() -> None:
    rng = np.random.default_rng(2)
    teacher = rng.normal(size=(100, 6)) * np.arange(1, 7) + 5
    assert relative_error(teacher, teacher) == 0
    assert centred_cosine(teacher, teacher) == pytest.approx(1)
    constant = np.broadcast_to(teacher.mean(0), teacher.shape)
    assert relative_error(constant, teacher) == pytest.approx(1, rel=1e-5)
    assert accuracy(np.eye(3), np.eye(3)[[0, 1, 1]]) == pytest.approx(2 / 3)


def test_fsdd_has_its_own_split_by_takes(tmp_path: Path, embedder: AudioEmbedder) -> None:
    for digit in range(10):
        for speaker in ("jackson", "lucas"):
            for take in (0, 4, 5, 49):
                (tmp_path / f"{digit}_{speaker}_{take}.wav").touch()
    data = digits(tmp_path)
    assert data.folds == ("test-jackson", "test-lucas", "train")
    assert sum(example.fold == "train" for example in data.examples) == 40
    noise = np.random.default_rng(0).normal(size=(80, 10))
    x = (0.2 * noise + data.targets()).astype(np.float32)
    assert probe_accuracy(embedder, data, x, ["test-lucas"]) > 0.9


def test_the_tables_go_between_the_cards_markers(tmp_path: Path) -> None:
    page = tmp_path / "card.md"
    page.write_text("above\n<!-- scores: python -m eval card -->\nold\n<!-- /scores -->\nbelow\n")
    insert(page, "| new |")
    insert(page, "| newer |")
    text = page.read_text()
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "| newer |" in text
    assert "new |\n" not in text.replace("| newer |", "")
    page.write_text("no markers")
    with pytest.raises(BadRequest, match="markers"):
        insert(page, "x")
