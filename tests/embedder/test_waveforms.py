"""What may be given as audio is understood, in any form; what can only be a mistake is refused."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from embedder import AudioEmbedder, load_audio, waveforms
from embedder.errors import BadAudio, BadRequest, UnsupportedAudio
from embedder.testing import wav_bytes, write_wav
from embedder.waveforms import Batch, in_order, read
from tests.detector_kit import lively_detector
from tests.tensors import noise

RATE = 32_000


@pytest.fixture(scope="module")
def model() -> AudioEmbedder:
    torch.manual_seed(0)
    return AudioEmbedder.build("mn01_as")


def clip(samples: int, seed: int = 0) -> Tensor:
    return noise(seed + 1, samples)[seed] * 0.1


def float_wav(samples: Tensor, rate: int) -> bytes:
    """A WAV file of 32-bit floats."""
    data = samples.numpy().astype("<f4").tobytes()
    form = b"".join(
        [
            *(number.to_bytes(2, "little") for number in (3, 1)),
            *(number.to_bytes(4, "little") for number in (rate, 4 * rate)),
            *(number.to_bytes(2, "little") for number in (4, 32)),
        ]
    )
    chunks = b"fmt " + len(form).to_bytes(4, "little") + form
    chunks += b"data" + len(data).to_bytes(4, "little") + data
    return b"RIFF" + (4 + len(chunks)).to_bytes(4, "little") + b"WAVE" + chunks


FORMS: dict[str, Callable[[Path], Any]] = {
    "str": str,
    "Path": Path,
    "bytes": Path.read_bytes,
    "bytearray": lambda path: bytearray(path.read_bytes()),
    "memoryview": lambda path: memoryview(path.read_bytes()),
    "file": lambda path: io.BytesIO(path.read_bytes()),
    "tensor": lambda path: torch.from_numpy(load_audio(path, RATE)),
    "array": lambda path: load_audio(path, RATE),
    "float64": lambda path: load_audio(path, RATE).astype(np.float64),
    "big-endian": lambda path: load_audio(path, RATE).astype(">f4"),
    "backwards": lambda path: load_audio(path, RATE)[::-1].copy()[::-1],
    "numbers": lambda path: load_audio(path, RATE).tolist(),
    "gradients": lambda path: torch.from_numpy(load_audio(path, RATE)).requires_grad_(),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_clip_gives_the_same(
    form: str, model: AudioEmbedder, tmp_path: Path
) -> None:
    path = write_wav(tmp_path / "a.wav", clip(16_000).numpy(), 16_000)
    expected = model.scene(torch.from_numpy(load_audio(path, RATE))[None])
    assert torch.equal(model.scene(FORMS[form](path)), expected)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, RATE, 96_000])
@pytest.mark.parametrize("seconds", [0.01, 2.3])
def test_an_array_is_resampled_as_its_file_would_be(
    model: AudioEmbedder, rate: int, seconds: float
) -> None:
    samples = clip(int(seconds * rate))
    expected = model.scene(float_wav(samples, rate))
    assert torch.equal(model.scene(samples, sample_rate=rate), expected)
    assert torch.equal(model.scene(samples[None].numpy(), sample_rate=rate), expected)
    assert torch.equal(model.scene([samples], sample_rate=rate), expected)


def test_every_answer_knows_the_sample_rate(model: AudioEmbedder) -> None:
    samples, rate = clip(22_050), 22_050
    wave = load_audio(float_wav(samples, rate), RATE)
    assert torch.equal(model.tags(samples, sample_rate=rate), model.tags(wave))
    assert model.top_tags(samples, 3, sample_rate=rate) == model.top_tags(wave, 3)
    for ask in (model.timestamps, model.window_tags):
        assert torch.equal(ask(samples, sample_rate=rate).vectors, ask(wave).vectors)
    named = model.features(samples, taps=["mel"], sample_rate=rate)["mel"]
    assert torch.equal(named, model.features(wave, taps=["mel"])["mel"])


class TestLists:
    """Clips of different lengths and kinds, answered in their order."""

    @pytest.fixture
    def clips(self, tmp_path: Path) -> list[Any]:
        lengths = [8_000, 12_000, 8_000, 100, 12_000, 8_000]
        waves = [clip(length, seed) for seed, length in enumerate(lengths)]
        path = write_wav(tmp_path / "a.wav", waves[1].numpy())
        return [
            waves[0],
            path,
            waves[2][None].numpy(),
            waves[3],
            wav_bytes(waves[4].numpy()),
            waves[5],
        ]

    def test_vectors_are_stacked(self, model: AudioEmbedder, clips: list[Any]) -> None:
        for ask in (model.scene, model.tags):
            alone = torch.cat([ask(clip) for clip in clips])
            assert torch.allclose(ask(clips), alone, atol=1e-5)
            assert torch.allclose(ask(tuple(clips)), alone, atol=1e-5)
        features = model.features(clips)
        assert {tap: len(values) for tap, values in features.items()} == dict.fromkeys(
            model.tap_sizes, len(clips)
        )

    def test_answers_of_many_lengths_are_a_list(
        self, model: AudioEmbedder, clips: list[Any]
    ) -> None:
        for ask in (model.timestamps, model.window_tags):
            together: Any = ask(clips)
            alone: list[Any] = [ask(clip) for clip in clips]
            assert len(together) == len(clips)
            for answer, one in zip(together, alone, strict=True):
                assert torch.allclose(answer.vectors, one.vectors, atol=1e-5)
                assert torch.equal(answer.ms, one.ms)

    def test_events_of_each_clip(self, clips: list[Any]) -> None:
        with lively_detector() as detector:
            together = detector.events(clips)
            alone = [detector.events(clip)[0] for clip in clips]
            assert any(alone)
            for ours, theirs in zip(together, alone, strict=True):
                assert [event.label for event in ours] == [event.label for event in theirs]
            frames = detector.frame_probabilities(clips)
            frames_alone: list[Any] = [detector.frame_probabilities(clip) for clip in clips]
            for answer, one in zip(frames, frames_alone, strict=True):
                assert torch.allclose(answer.values, one.values, atol=1e-5)
                assert torch.equal(answer.ms, one.ms)

    def test_clips_of_one_length_run_together(
        self, model: AudioEmbedder, clips: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shapes = []
        run = model.window_features

        def noted(batch: Any, taps: Any) -> Any:
            shapes.append(batch.shape)
            return run(batch, taps)

        monkeypatch.setattr(model, "window_features", noted)
        model.scene(clips)
        assert sorted(shapes) == [(1, 100), (2, 12_000), (3, 8_000)]

    def test_few_clips_wait_for_others_of_their_length(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waveforms, "BATCH_SAMPLES", 1_000)
        monkeypatch.setattr(waveforms, "WAITING_SAMPLES", 4_000)
        given = [0]

        class Counted(list[Tensor]):
            def __iter__(self) -> Iterator[Tensor]:
                for clip in super().__iter__():
                    given.append(len(clip))
                    yield clip

        taken, most = 0, 0
        numbers: list[int] = []
        for batch in read(Counted(torch.zeros(500 + number % 40) for number in range(100)), RATE):
            most = max(most, sum(given) - taken)
            [wave] = batch.blocks
            taken += torch.as_tensor(wave).numel()
            numbers += batch.numbers
        assert sorted(numbers) == list(range(100))
        assert 2_000 <= most <= 5_500

    def test_the_order_is_the_callers(self) -> None:
        batches = [Batch((2, 0), ["c", "a"]), Batch((1,), ["b"])]  # type: ignore[list-item]
        assert in_order(batches, list) == ["a", "b", "c"]

    def test_an_error_names_the_clip(self, model: AudioEmbedder, clips: list[Any]) -> None:
        with pytest.raises(BadAudio, match=r"clip 1 of the list: .* no such file"):
            model.scene([clips[0], "nowhere.wav"])
        with pytest.raises(UnsupportedAudio, match="clip 0 of the list"):
            model.scene([b"no audio at all, but some bytes"])
        with pytest.raises(BadAudio, match="holds no clips"):
            model.scene([])


REFUSED: dict[str, tuple[Any, str]] = {
    "frames of stereo": (torch.zeros(RATE, 2), r"pass x.mean\(1\)"),
    "frames of mono": (np.zeros((RATE, 1)), r"pass x.mean\(1\)"),
    "stereo in a list": ([torch.zeros(2, RATE)], r"clip 0 .* pass x.mean\(0\)"),
    "frames in a list": ([np.zeros((RATE, 2))], r"clip 0 .* pass x.mean\(1\)"),
    "array and rate": ((torch.zeros(RATE), 44_100), "sample_rate=44100"),
    "rate and array": ((44_100, np.zeros(RATE)), "cannot embed this tuple; give a path"),
    "nothing": (None, "cannot embed this NoneType; give a path"),
    "mapping": ({"array": np.zeros(8)}, "cannot embed this dict; give a path"),
    "generator": (iter([np.zeros(8)]), "cannot embed this list_iterator; give a path"),
    "number": (0.5, "pass mono"),
    "complex": (np.zeros(8, np.complex64), "cannot embed this ndarray"),
    "integers": (np.zeros(8, np.int32), r"int32 / 2\*\*31"),
    "bytes of PCM": (np.zeros(8, np.uint8), "uint8 / 128.0 - 1"),
    "too large for float32": (np.full(8, 1e300), "contain inf"),
    "missing file": ("nowhere.wav", "no such file"),
    "folder": (Path(), "not a regular file"),
    "URL": ("https://example.org/dog.wav", "is a URL, and none is fetched"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_only_be_a_mistake_is_refused(case: str, model: AudioEmbedder) -> None:
    audio, message = REFUSED[case]
    for ask in (model.scene, model.tags, model.timestamps):
        with pytest.raises(BadAudio, match=message):
            ask(audio)


def test_channels_and_clips_are_told_apart_where_a_rate_is_given(model: AudioEmbedder) -> None:
    stereo = noise(2, 44_100) * 0.1
    with pytest.raises(BadAudio, match=r"pass list\(x\) for 2 clips, or x.mean\(0\)"):
        model.scene(stereo, sample_rate=44_100)
    with pytest.raises(BadAudio, match=r"or x.mean\(1\)"):
        model.scene(stereo.T, sample_rate=44_100)
    assert model.scene(list(stereo), sample_rate=44_100).shape[0] == 2
    assert model.scene(stereo.mean(0), sample_rate=44_100).shape[0] == 1


@pytest.mark.parametrize("rate", [0, -1, 999, 44_100.5, float("nan"), 10**6])
def test_sample_rates_that_cannot_be(rate: float, model: AudioEmbedder) -> None:
    with pytest.raises(BadRequest, match="sample_rate is"):
        model.scene(clip(100), sample_rate=rate)  # type: ignore[arg-type]


def test_options_are_named(model: AudioEmbedder) -> None:
    """A rate in second place once became the window."""
    asks: list[Any] = [model.scene, model.timestamps, model.tags, model.window_tags, model.features]
    for ask in asks:
        with pytest.raises(TypeError, match="positional"):
            ask(clip(100), 44_100)


class TestStreams:
    """Blocks hold the same clips from the first to the last."""

    def test_a_last_block_may_be_short(self, model: AudioEmbedder) -> None:
        blocks = torch.split(noise(128, 1_605) * 0.1, 1_600, 1)
        assert model.tags_stream(blocks).shape[0] == 128

    def test_blocks_of_interleaved_channels_are_refused(self, model: AudioEmbedder) -> None:
        with pytest.raises(BadAudio, match=r"x.mean\(1\)"):
            model.tags_stream([np.zeros((1_024, 2), np.float32)])

    def test_the_number_of_clips_stays(self, model: AudioEmbedder) -> None:
        with pytest.raises(BadAudio, match="a block of 3 clips after one of 2"):
            model.tags_stream([torch.zeros(2, 100), torch.zeros(3, 100)])

    def test_an_array_is_no_list_of_blocks(self, model: AudioEmbedder) -> None:
        with pytest.raises(BadAudio, match="give a list of arrays"):
            model.tags_stream(torch.zeros(2, 100))


class TestTopTags:
    """Pairs of label and probability, the best first."""

    def test_one_clip_gives_one_list(self, model: AudioEmbedder, tmp_path: Path) -> None:
        path = write_wav(tmp_path / "a.wav", clip(RATE).numpy())
        pairs = model.top_tags(path, 4)
        scores = model.tags(path)[0]
        assert [label for label, _ in pairs] == [
            model.labels[index] for index in scores.argsort(descending=True, stable=True)[:4]
        ]
        assert [score for _, score in pairs] == sorted(scores.tolist(), reverse=True)[:4]
        assert len(model.top_tags(clip(RATE))) == 5
        assert len(model.top_tags(clip(RATE), 10_000)) == len(model.labels)

    def test_several_give_one_list_each(self, model: AudioEmbedder) -> None:
        waves = noise(2, RATE) * 0.1
        alone = [[label for label, _ in model.top_tags(wave, 2)] for wave in waves]
        for several in (waves, list(waves)):
            tags = model.top_tags(several, 2)
            assert [[label for label, _ in pairs] for pairs in tags] == alone

    def test_none_are_refused(self, model: AudioEmbedder) -> None:
        with pytest.raises(BadRequest, match="count is 0"):
            model.top_tags(clip(100), 0)
