"""On any machine our front ends and networks give the numbers of the reference implementations.

The other comparisons need the references' own outputs (`tests.golden`) and are skipped without.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from embedder.model import AudioEmbedder
from tests import parity
from tests.golden import relative_error

# Sums are ordered in other ways on other processors.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=parity.NETWORKS)
def model(request: pytest.FixtureRequest) -> AudioEmbedder:
    return parity.filled(request.param)


@pytest.mark.parametrize("front_end", parity.FRONT_ENDS)
def test_front_ends_give_the_reference_log_mel(front_end: str) -> None:
    expected = parity.stored("mel")[front_end]
    assert relative_error(parity.log_mel(front_end), expected) <= TOLERANCE


@pytest.mark.parametrize("runtime", ["eager", "auto"])
def test_networks_give_the_reference_answers(model: AudioEmbedder, runtime: str) -> None:
    model.use(runtime)
    expected = parity.stored(model.name)
    answers = parity.answers(model, parity.sound(model.sample_rate))
    assert answers.keys() == expected.keys()
    errors = {tap: relative_error(answers[tap], expected[tap]) for tap in expected}
    assert {tap: error for tap, error in errors.items() if not error <= TOLERANCE} == {}


def test_answers_depend_on_the_sound(model: AudioEmbedder) -> None:
    """Weights that fade would make the comparison worthless."""
    model.use("eager")
    wave = parity.sound(model.sample_rate)
    noise = torch.from_numpy(parity.uniform(9, len(wave)).astype(np.float32)) * 0.05
    expected = parity.stored(model.name)
    for tap, values in parity.answers(model, noise).items():
        assert relative_error(values, expected[tap]) > 100 * TOLERANCE, tap


def test_the_sound_and_the_weights_are_the_ones_that_were_stored() -> None:
    wave = parity.sound(32_000)
    assert wave.shape == (64_000,)
    assert (wave * 32_768 == (wave * 32_768).round()).all()
    assert 0.1 < float(wave.std()) < 0.3
    # The first numbers of splitmix64 from 0: e220a839, 6e789e6a, 06c45d18, in the top 32 bits.
    expected = [0xE220A839 / 2**31 - 1, 0x6E789E6A / 2**31 - 1, 0x06C45D18 / 2**31 - 1]
    assert parity.uniform(0, 3).tolist() == pytest.approx(expected, abs=1e-9)
