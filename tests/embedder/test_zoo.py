"""The table of models is consistent in itself and with the networks it describes."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from embedder.described import spec_from_json, spec_to_json
from embedder.errors import UnknownModel
from embedder.model import AudioEmbedder
from embedder.zoo import MODELS, lookup

# Every MN that was released (EfficientAT, tag v0.0.1), by checkpoint.
PUBLISHED_MN = """\
mn01_as_mAP_298 mn02_as_mAP_378 mn04_as_mAP_432 mn05_as_mAP_443 mn10_as_mAP_471 mn20_as_mAP_478
mn30_as_mAP_482 mn40_as_mAP_484 mn40_as_ext_mAP_487 mn40_as_no_im_pre_mAP_483
mn10_as_hop_5_mAP_475 mn10_as_hop_15_mAP_463 mn10_as_hop_20_mAP_456 mn10_as_hop_25_mAP_447
mn10_as_mels_40_mAP_453 mn10_as_mels_64_mAP_461 mn10_as_mels_256_mAP_474 mn10_as_fc_mAP_465
mn10_as_fc_s2221_mAP_466 mn10_as_fc_s2211_mAP_466
"""


def test_every_published_mn_has_a_row() -> None:
    files = {spec.weights for spec in MODELS.values()}
    assert {f"{name}.pt" for name in PUBLISHED_MN.split()} <= files


def test_no_two_rows_share_a_checkpoint() -> None:
    files = [spec.weights for spec in MODELS.values()]
    assert len(files) == len(set(files))


@pytest.mark.parametrize("name", [name for name, spec in MODELS.items() if not spec.bundled])
def test_urls_name_the_file(name: str) -> None:
    spec = MODELS[name]
    assert spec.url.startswith("https://")
    assert spec.url.endswith(f"/{spec.weights}")


@pytest.mark.parametrize(
    "name", ["mn01_as", "mn04_as", "mn05_as", "mn10_as", "mn20_as", "mn30_as", "mn40_as"]
)
def test_published_parameter_counts_hold(name: str) -> None:
    model = AudioEmbedder.build(name)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    assert MODELS[name].params == pytest.approx(millions, rel=0.035)


@pytest.mark.parametrize("name", MODELS)
def test_descriptions_survive_a_checkpoint_header(name: str) -> None:
    spec = MODELS[name]
    again = spec_from_json(spec_to_json(spec))
    assert asdict(again.network) == asdict(spec.network)
    assert (again.mel, again.taps) == (spec.mel, spec.taps)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("mn10", "mn10_as, "),
        ("DyMN10", "dymn10_as, "),
        ("fmn10+tf", "fmn10+tf-128_strong, fmn10+tf-256_strong, "),
        ("fmn10+tf-265_strong", "fmn10+tf-256_strong, "),
        ("mn04_as_mAP_432", "mn04_as, "),
        ("banana", "sprout04, mn01_as, "),
        ("", "sprout04, mn01_as, "),
    ],
)
def test_an_unknown_name_brings_the_nearest_and_where_all_are(name: str, nearest: str) -> None:
    with pytest.raises(UnknownModel) as raised:
        lookup(name)
    message = str(raised.value)
    assert message.startswith(f"no model {name!r}; choose one of {nearest}")
    assert message.endswith(f", ... (`embedder models` lists all {len(MODELS)})")
    assert len(message) < 220


def test_few_choices_are_all_named() -> None:
    message = str(UnknownModel("dig", ["cat", "dog"]))
    assert message == "no model 'dig'; choose one of dog, cat"
