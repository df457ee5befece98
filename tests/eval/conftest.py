"""Fixtures of the tests of training and its data."""

from __future__ import annotations

import pytest

from eval.data import corpus


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> corpus.Corpus:
    folder = tmp_path_factory.mktemp("corpus")
    return corpus.build([], folder, synthetic=14)
