"""Every dataset layout, on miniatures of what was published."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from embedder.errors import BadRequest
from embedder.testing import write_wav
from eval.data.labelled import open_dataset

SILENCE = np.zeros(320)
ESC_HEADER = "filename,fold,target,category,esc10,src_file,take"


def esc50(root: Path) -> Path:
    (root / "meta").mkdir()
    rows = [
        ESC_HEADER,
        "1-100032-A-0.wav,1,0,dog,True,100032,A",
        "2-100038-A-14.wav,2,14,chirping_birds,False,100038,A",
        "2-100210-A-36.wav,2,36,vacuum_cleaner,False,100210,A",
        "5-100263-A-40.wav,5,40,helicopter,True,100263,A",
    ]
    (root / "meta" / "esc50.csv").write_text("\n".join(rows))
    return root


def test_esc50(tmp_path: Path) -> None:
    data = open_dataset(esc50(tmp_path), "esc50")
    assert data.labels == ("chirping birds", "dog", "helicopter", "vacuum cleaner")
    assert data.folds == ("1", "2", "5")
    assert not data.multi_label
    assert data.examples[0].path == tmp_path / "audio" / "1-100032-A-0.wav"
    train, test = data.split(["2"])
    assert (len(train.examples), len(test.examples)) == (2, 2)
    assert train.labels == data.labels


def test_esc10_as_rows_of_esc50(tmp_path: Path) -> None:
    data = open_dataset(esc50(tmp_path), "esc10")
    assert data.labels == ("dog", "helicopter")


def test_esc10_as_first_published(tmp_path: Path) -> None:
    write_wav(tmp_path / "001 - Dog bark" / "1-30226-A.wav", SILENCE, 32_000)
    write_wav(tmp_path / "003 - Sea waves" / "4-28135-B.wav", SILENCE, 32_000)
    data = open_dataset(tmp_path, "esc10")
    assert data.labels == ("Dog bark", "Sea waves")
    assert data.folds == ("1", "4")
    assert data.targets().tolist() == [[1, 0], [0, 1]]


def test_openmic(tmp_path: Path) -> None:
    keys = ["000046_3840", "000135_483840", "000178_3840"]
    np.savez(
        tmp_path / "openmic-2018.npz",
        X=np.zeros((3, 10, 128)),
        Y_true=np.array([[0.9, 0.5, 0.5], [0.1, 0.8, 0.5], [0.5, 0.5, 0.2]]),
        Y_mask=np.array([[1, 0, 0], [1, 1, 0], [0, 0, 1]], bool),
        sample_key=np.array(keys, dtype=object),
    )
    (tmp_path / "class-map.json").write_text(json.dumps({"banjo": 1, "accordion": 0, "bass": 2}))
    (tmp_path / "partitions").mkdir()
    (tmp_path / "partitions" / "split01_train.csv").write_text(f"{keys[0]}\n{keys[2]}\n")
    (tmp_path / "partitions" / "split01_test.csv").write_text(f"{keys[1]}\n")
    data = open_dataset(tmp_path, "openmic")
    assert data.labels == ("accordion", "banjo", "bass")
    assert data.multi_label
    assert data.examples[0].path == tmp_path / "audio" / "000" / "000046_3840.ogg"
    nan = np.nan
    expected = [[1, nan, nan], [0, 1, nan], [nan, nan, 0]]
    np.testing.assert_array_equal(data.targets(), expected)
    assert data.folds == ("test", "train")


def test_fsd50k(tmp_path: Path) -> None:
    truth = tmp_path / "FSD50K.ground_truth"
    truth.mkdir()
    vocabulary = "0,Accordion,/m/0mkg\n1,Bark,/m/05tny_\n2,Dog,/m/0bt9lr\n"
    (truth / "vocabulary.csv").write_text(vocabulary)
    (truth / "dev.csv").write_text(
        'fname,labels,mids,split\n64760,"Bark,Dog","/m/05tny_,/m/0bt9lr",train\n'
        "16399,Accordion,/m/0mkg,val\n"
    )
    (truth / "eval.csv").write_text("fname,labels,mids\n37199,Accordion,/m/0mkg\n")
    data = open_dataset(tmp_path, "fsd50k")
    assert data.folds == ("eval", "train", "val")
    assert data.targets().tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert data.examples[0].path == tmp_path / "FSD50K.dev_audio" / "64760.wav"
    assert data.examples[2].path == tmp_path / "FSD50K.eval_audio" / "37199.wav"


def test_tau2020(tmp_path: Path) -> None:
    setup = tmp_path / "evaluation_setup"
    setup.mkdir()
    header = "filename\tscene_label\n"
    (setup / "fold1_train.csv").write_text(
        f"{header}audio/airport-lisbon-1000-40000-a.wav\tairport\n"
    )
    (setup / "fold1_evaluate.csv").write_text(
        f"{header}audio/bus-milan-1-2-s1.wav\tbus\naudio/airport-lyon-3-4-b.wav\tairport\n"
    )
    data = open_dataset(tmp_path, "tau2020")
    assert data.labels == ("airport", "bus")
    train, test = data.split(["evaluate"])
    assert train.examples[0].path == tmp_path / "audio/airport-lisbon-1000-40000-a.wav"
    assert len(test.examples) == 2


def test_any_folder_and_any_csv(tmp_path: Path) -> None:
    for name in ("cat/a.wav", "dog/b.wav"):
        write_wav(tmp_path / name, SILENCE, 32_000)
    (tmp_path / "dog" / "notes.txt").write_text("no sound")
    assert open_dataset(tmp_path).labels == ("cat", "dog")
    table = tmp_path / "labels.csv"
    table.write_text("file,labels,fold\ncat/a.wav,cat;animal,x\ndog/b.wav,dog,y\n")
    data = open_dataset(tmp_path)
    assert data.labels == ("animal", "cat", "dog")
    assert data.multi_label
    assert data.folds == ("x", "y")
    assert open_dataset(table) == data
    assert data.waves(16_000)[0].shape == (160,)


@pytest.mark.parametrize("layout", ["esc50", "openmic", "fsd50k", "tau2020", "csv", "folder"])
def test_a_folder_laid_out_otherwise_is_refused(tmp_path: Path, layout: str) -> None:
    with pytest.raises(BadRequest, match=str(tmp_path)):
        open_dataset(tmp_path, layout)


def test_unknown_layouts_and_folds_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match=r"'esc11'.*esc50"):
        open_dataset(tmp_path, "esc11")
    data = open_dataset(esc50(tmp_path), "esc50")
    with pytest.raises(BadRequest, match="'9'"):
        data.split(["9"])
    with pytest.raises(BadRequest, match="nothing to train"):
        data.split(["1", "2", "5"])
