"""An encoder for MAEB, the Massive Audio Embedding Benchmark of the `mteb` package.

    import mteb
    from eval.maeb import MaebEncoder

    tasks = mteb.get_tasks(tasks=["ESC50", "BeijingOpera"])
    mteb.evaluate(MaebEncoder("mn10_as"), tasks)

Needs `pip install -e '.[mteb]'`. The class fulfils mteb's `EncoderProtocol` without
inheriting from it, so that importing this module does not import mteb.
Axes: N clips, D values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from embedder.audio.decode import Samples, resample
from embedder.defaults import DEFAULT_MODEL
from embedder.errors import BadRequest
from embedder.model import AudioEmbedder

ORGANISATION: Final = "audio-embedder"
# What the published weights were trained on, by mteb's names.
TRAINED_ON: Final = frozenset({"AudioSet", "AudioSetMini"})


class MaebEncoder:
    """An encoder for mteb that returns scene embeddings of a model.

    Parameters
    ----------
    model_name : a row of the zoo, with or without "audio-embedder/", or the path of a
        self-describing checkpoint.
    revision : ignored; weights are verified by their hash.
    device : as in `AudioEmbedder.load`; None means "auto".
    taps : features that make up the embedding; default: those of the model.
    """

    def __init__(
        self,
        model_name: str = DEFAULT_MODEL,
        revision: str | None = None,  # noqa: ARG002
        *,
        device: str | None = None,
        taps: Sequence[str] | None = None,
    ) -> None:
        name = model_name.removeprefix(f"{ORGANISATION}/")
        self.model = AudioEmbedder.load(name, taps=taps, device=device or "auto")

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,  # noqa: ARG002
        hf_split: str,  # noqa: ARG002
        hf_subset: str,  # noqa: ARG002
        prompt_type: Any = None,  # noqa: ARG002
        **_: Any,
    ) -> Samples:
        """Embed the clips of all batches: float32 [N, D], in the order of the clips.

        `inputs` are batches; the "audio" of each is a list of {array, sampling_rate}. Clips of a
        batch that are equally long go through the network together.

        Raises
        ------
        BadRequest : a batch has no audio.
        BadAudio : a clip cannot be embedded.
        """
        vectors: list[Tensor] = []
        for batch in inputs:
            if "audio" not in batch:
                raise BadRequest("the task has no audio; this model embeds nothing else")
            clips = [self._samples(item) for item in batch["audio"]]
            vectors.append(self.model.scene(clips).cpu())
        embeddings: Samples = torch.cat(vectors).numpy()
        return embeddings

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of every pair of rows: [N, D], [M, D] -> [N, M]."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of rows of the same number: [N, D], [N, D] -> [N]."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)

    @property
    def mteb_model_meta(self) -> Any:
        """The `ModelMeta` that mteb writes beside the scores."""
        from mteb.models import ModelMeta

        model = self.model
        n_parameters = sum(value.numel() for value in model.backbone.parameters())
        return ModelMeta(
            loader=MaebEncoder,
            name=f"{ORGANISATION}/{model.name}",
            revision=model.weights_sha256[:12] or "random",
            release_date=None,
            languages=None,
            n_parameters=n_parameters,
            memory_usage_mb=n_parameters * 4 / 2**20,
            max_tokens=None,
            embed_dim=model.scene_embedding_size,
            license="mit",
            open_weights=True,
            public_training_code="https://github.com/fschmid56/EfficientAT",
            public_training_data="https://research.google.com/audioset/",
            framework=["PyTorch"],
            reference="https://arxiv.org/abs/2303.01879",
            similarity_fn_name="cosine",
            use_instructions=False,
            training_datasets=set(TRAINED_ON),
            modalities=["audio"],
        )

    def _samples(self, item: Mapping[str, Any]) -> Samples:
        """Bring a clip of mteb, [S] or [channels, S], to mono [S] at the model's rate."""
        samples = np.asarray(item["array"], np.float32)
        if samples.ndim > 1:
            samples = samples.mean(0)
        return resample(samples, int(item["sampling_rate"]), self.model.sample_rate)


def _unit(embeddings: Any) -> Tensor:
    """Scale rows [N, D], or a single one [D], to length 1: [N, D]."""
    rows = torch.as_tensor(embeddings, dtype=torch.float32)
    return torch.nn.functional.normalize(rows if rows.ndim > 1 else rows[None], dim=-1)
