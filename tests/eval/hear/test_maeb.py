"""The encoder for mteb: the interface itself, and where mteb is installed, a run of one task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embedder import AudioEmbedder
from embedder.checkpoints import save
from embedder.errors import BadRequest
from embedder.zoo import lookup
from eval.maeb import MaebEncoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MaebEncoder:
    torch.manual_seed(0)
    model = AudioEmbedder.build("mn01_as")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save(path, lookup("mn01_as"), model.backbone.state_dict(), model.labels)
    return MaebEncoder(str(path), device="cpu")


def clip(samples: int, rate: int, seed: int, channels: int = 0) -> dict[str, Any]:
    shape = (channels, samples) if channels else (samples,)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, shape)
    return {"array": noise, "sampling_rate": rate}


def encode(encoder: MaebEncoder, *batches: list[dict[str, Any]]) -> Any:
    inputs = [{"audio": batch} for batch in batches]
    return encoder.encode(inputs, task_metadata=None, hf_split="test", hf_subset="default")


def test_clips_of_any_length_rate_and_batch_keep_their_order(encoder: MaebEncoder) -> None:
    clips = [
        *(clip(8_000, 32_000, 0), clip(5_000, 16_000, 1), clip(8_000, 32_000, 2)),
        clip(4_000, 44_100, 3, channels=2),
    ]
    together = encode(encoder, clips)
    assert together.shape == (4, encoder.model.scene_embedding_size)
    assert together.dtype == np.float32
    alone = encode(encoder, *([one] for one in clips))
    np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)


def test_similarities_are_cosines(encoder: MaebEncoder) -> None:
    vectors = encode(encoder, [clip(4_000, 32_000, seed) for seed in range(3)])
    all_pairs = encoder.similarity(vectors, vectors)
    assert all_pairs.shape == (3, 3)
    assert torch.allclose(all_pairs.diagonal(), torch.ones(3), atol=1e-5)
    assert torch.allclose(encoder.similarity_pairwise(vectors, vectors), torch.ones(3), atol=1e-5)


def test_a_task_without_audio_is_refused(encoder: MaebEncoder) -> None:
    with pytest.raises(BadRequest, match="no audio"):
        encoder.encode([{"text": ["hi"]}], task_metadata=None, hf_split="", hf_subset="")


@pytest.mark.extras
@pytest.mark.filterwarnings("default")  # mteb's and its dependencies' own
def test_mteb_takes_it_and_scores_it(encoder: MaebEncoder, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb")
    datasets = pytest.importorskip("datasets")
    from mteb.mocks.mock_tasks.classification import MockAudioClassification
    from mteb.models.models_protocols import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.embed_dim == encoder.model.scene_embedding_size

    class Tones(MockAudioClassification):  # type: ignore[misc]
        """mteb's own mock task, with sounds that differ and need no decoder."""

        def load_data(self, **_: Any) -> None:
            time = np.arange(8_000) / 16_000
            sounds = [
                {"array": np.sin(2 * np.pi * pitch * time).tolist(), "sampling_rate": 16_000}
                for pitch in (200, 3_000)
            ]
            self.dataset = datasets.DatasetDict(
                test=datasets.Dataset.from_dict({"audio": sounds, "label": [1, 2]}),
                train=datasets.Dataset.from_dict({"audio": sounds * 5, "label": [1, 2] * 5}),
            )
            self.data_loaded = True

    result = mteb.evaluate(
        encoder, Tones(), cache=mteb.ResultCache(tmp_path), encode_kwargs={"batch_size": 4}
    )
    assert result.task_results[0].get_score() == 1.0
