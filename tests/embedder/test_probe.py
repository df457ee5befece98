"""Probes on frozen embeddings, metrics, and the card's tables."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.neural_network import MLPClassifier

from embedder import checkpoints
from embedder.errors import BadRequest, WeightsMismatch, WeightsNotFound
from embedder.model import AudioEmbedder
from embedder.probe import Probe
from embedder.testing import wav_bytes
from eval.data.labelled import Dataset, Example
from eval.scores.metrics import (
    accuracy,
    centred_cosine,
    mean_average_precision,
    relative_error,
)
from eval.training.card import digits, insert, probe_accuracy
from eval.training.probe import HIDDEN, STRENGTH, embed, fit_probe
from service.app import create_app
from tests.service_kit import running, settings

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
    made[:, : len(data.labels)] += 3 * data.targets()
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


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("labels", [2, 3])
def test_probabilities_are_those_of_scikit_learn(
    embedder: AudioEmbedder, kind: str, labels: int
) -> None:
    data = dataset()
    kept = tuple(example for example in data.examples if example.labels <= set(LABELS[:labels]))
    data = Dataset(LABELS[:labels], kept)
    x = vectors(data)
    truth = data.targets().argmax(1)
    probe = fit_probe(x, data, embedder, kind)
    standard = (x - probe.mean) / probe.scale
    theirs = (
        LogisticRegression(C=STRENGTH, max_iter=1000)
        if kind == "linear"
        else MLPClassifier((HIDDEN,), alpha=1e-3, max_iter=300, random_state=0)
    ).fit(standard, truth)
    expected = theirs.predict_proba(standard)
    np.testing.assert_allclose(probe.probabilities(x), expected, atol=1e-5)


def test_of_several_labels_each_has_its_own_probability(embedder: AudioEmbedder) -> None:
    data = dataset(multi_label=True)
    x = vectors(data)
    probe = fit_probe(x, data, embedder, "mlp")
    standard = (x - probe.mean) / probe.scale
    theirs = MLPClassifier((HIDDEN,), alpha=1e-3, max_iter=300, random_state=0)
    theirs.fit(standard, data.targets().astype(int))
    expected = theirs.predict_proba(standard)
    np.testing.assert_allclose(probe.probabilities(x), expected, atol=1e-5)


def test_of_all_labels_those_that_were_seen_share_the_probability(embedder: AudioEmbedder) -> None:
    data = dataset()
    for seen in (1, 2):
        kept = tuple(example for example in data.examples if example.labels <= set(LABELS[:seen]))
        few = Dataset(LABELS, kept)
        probe = fit_probe(vectors(few), few, embedder)
        found = probe.probabilities(vectors(few))
        assert accuracy(found, few.targets()) == 1
        assert found[:, seen:].max() < 1e-6


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


@dataclass(frozen=True)
class Served:
    """A probe's file, the model underneath, clips, and the probabilities to be had for them."""

    path: Path
    underneath: Path
    clips: np.ndarray
    expected: np.ndarray


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A probe on a random network, by scikit-learn; the network's file lies beside it."""
    folder = tmp_path_factory.mktemp("probe")
    torch.manual_seed(0)
    random = AudioEmbedder.build("mn01_as")
    underneath = folder / "underneath.safetensors"
    checkpoints.save(underneath, random.spec, random.backbone.state_dict(), random.labels)
    model = AudioEmbedder.load(str(underneath), device="cpu", runtime="eager")
    rng = np.random.default_rng(0)
    clips = rng.normal(0, 0.1, (30, 8000)).astype(np.float32)
    clips[1::3] = 0.5 * np.sin(np.arange(8000) * rng.uniform(0.05, 0.1, (10, 1)))
    clips[2::3, 4000:] = 0
    clips = (np.round(clips * 32_768) / 32_768).astype(np.float32)  # as 16 bits hold them
    data = dataset(len(clips))
    x = embed(model, list(clips))  # type: ignore[arg-type]
    probe = fit_probe(x, data, model)
    path = folder / "animals.safetensors"
    replace(probe, model="elsewhere/underneath.safetensors").save(path)
    fitted = LogisticRegression(C=STRENGTH, max_iter=1000)
    standard = (x - x.mean(0)) / (x.std(0) + 1e-6)
    expected = fitted.fit(standard, data.targets().argmax(1)).predict_proba(standard)
    return Served(path, underneath, clips, expected)


def test_a_probe_loads_as_a_model_whose_tags_it_gives(served: Served) -> None:
    model = AudioEmbedder.load(str(served.path), device="cpu", runtime="eager")
    base = AudioEmbedder.load(str(served.underneath), device="cpu", runtime="eager")
    assert (model.name, model.labels) == ("animals", LABELS)
    assert model.weights_sha256 != base.weights_sha256
    np.testing.assert_allclose(model.tags(served.clips).numpy(), served.expected, atol=1e-5)
    assert torch.equal(model.scene(served.clips), base.scene(served.clips))
    both = model.window_features(torch.from_numpy(served.clips[:2]), ("tags", "mel"))
    assert {tap: values.shape[1] for tap, values in both.items()} == {"tags": 3, "mel": 128}
    long = np.concatenate([served.clips[0]] * 60)
    vectors, _ = model.window_tags(long)
    assert torch.allclose(model.tags(long), vectors.mean(1), atol=1e-6)
    with pytest.raises(BadRequest, match="animals finds no events"):
        model.events(served.clips[0])
    with pytest.raises(BadRequest, match="a probe itself"):
        fit_probe(model.scene(served.clips).numpy(), dataset(30), model)


def encoded(clip: np.ndarray) -> bytes:
    return wav_bytes((clip * 32_768).astype(np.int16))


def test_a_probe_is_served_with_its_labels(served: Served) -> None:
    async def asked() -> list[dict[str, float]]:
        app = create_app(settings(model=str(served.path), device="cpu", runtime="eager"))
        async with running(app) as client:
            answers = []
            for index in (0, 1):
                answer = await client.post("/tags", content=encoded(served.clips[index]))
                assert answer.status_code == 200, answer.text
                assert answer.headers["x-model"] == "animals"
                answers.append({tag["label"]: tag["score"] for tag in answer.json()["tags"]})
            events = await client.post("/events", content=encoded(served.clips[0]))
            assert events.status_code == 400
            return answers

    for index, probabilities in enumerate(asyncio.run(asked())):
        assert set(probabilities) == set(LABELS)
        expected = dict(zip(LABELS, served.expected[index], strict=True))
        assert probabilities == pytest.approx(expected, abs=1e-5)


def test_a_probe_goes_with_the_weights_it_was_made_on(served: Served, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = AudioEmbedder.build("mn01_as")
    beside = tmp_path / "underneath.safetensors"
    checkpoints.save(beside, other.spec, other.backbone.state_dict(), other.labels)
    moved = tmp_path / "moved.safetensors"
    probe = Probe.load(served.path)
    probe.save(moved)
    with pytest.raises(WeightsMismatch, match="make the probe again"):
        AudioEmbedder.load(str(moved), device="cpu")
    replace(probe, model=str(served.path)).save(moved)
    with pytest.raises(WeightsMismatch, match="probe on a probe"):
        AudioEmbedder.load(str(moved), device="cpu")
    replace(probe, model=str(served.underneath), taps=("mel",)).save(moved)
    with pytest.raises(WeightsMismatch, match="values"):
        AudioEmbedder.load(str(moved), device="cpu")
    replace(probe, labels=("one",)).save(moved)
    with pytest.raises(WeightsMismatch, match="damaged"):
        AudioEmbedder.load(str(moved), device="cpu")


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
    page.write_text("above\n<!-- scores: embedder score card -->\nold\n<!-- /scores -->\nbelow\n")
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
