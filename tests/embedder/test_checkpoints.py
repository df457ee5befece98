"""Where weights come from, and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from embedder import AudioEmbedder, checkpoints, downloads
from embedder.checkpoints import WEIGHTS_DIR_VARIABLE
from embedder.errors import DownloadFailed, WeightsMismatch, WeightsNotFound
from embedder.zoo import MODELS, ModelSpec

SPEC = MODELS["mn01_as"]


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No test sees, or touches, the user's own weights."""
    cache = tmp_path / "cache"
    monkeypatch.setattr(checkpoints, "cache_dir", lambda: cache)
    monkeypatch.delenv(WEIGHTS_DIR_VARIABLE, raising=False)
    return cache


@pytest.fixture(scope="module")
def model() -> AudioEmbedder:
    torch.manual_seed(3)
    return AudioEmbedder.build("mn01_as")


@pytest.fixture
def published(model: AudioEmbedder, tmp_path: Path) -> Path:
    folder = tmp_path / "published"
    folder.mkdir()
    torch.save(model.backbone.state_dict(), folder / SPEC.weights)
    return folder


@pytest.fixture
def site(published: Path) -> Iterator[str]:
    """The folder of published checkpoints, served over HTTP on loopback."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(published))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/moved"))
                self.send_header("Content-Length", "0")
                self.end_headers()
            else:
                super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def at(site: str, **changes: str | None) -> ModelSpec:
    return replace(SPEC, url=f"{site}/{SPEC.weights}", **changes)  # type: ignore[arg-type]


def test_an_explicit_path_comes_first(model: AudioEmbedder, published: Path) -> None:
    path = published / SPEC.weights
    loaded = AudioEmbedder.load("mn01_as", weights=path, device="cpu", runtime="eager")
    clip = torch.randn(1, 8_000) * 0.1
    assert torch.equal(loaded.scene(clip), model.scene(clip))
    assert loaded.weights_sha256 == checkpoints.file_sha256(published / SPEC.weights)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_named_directories_are_searched(
    model: AudioEmbedder,
    tmp_path: Path,
    empty_cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    path = (folder / SPEC.weights).with_suffix(suffix)
    state = model.backbone.state_dict()
    torch.save(state, path) if suffix == ".pt" else save_file(state, path)
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, f"{tmp_path / 'nowhere'}:{folder}")
    empty_cache.mkdir()
    (empty_cache / SPEC.weights).write_bytes(b"must not be read: it comes later")
    assert checkpoints.find(SPEC) == path
    assert AudioEmbedder.load("mn01_as", device="cpu").weights_sha256


def test_downloads_are_kept_and_their_hash_recorded(site: str, empty_cache: Path) -> None:
    first = checkpoints.load(at(site))
    kept = empty_cache / SPEC.weights
    assert checkpoints.file_sha256(kept) == first.sha256
    assert {path.name for path in empty_cache.iterdir()} == {kept.name, f"{kept.name}.sha256"}
    assert kept.stat().st_mode & 0o777 == 0o644
    kept.write_bytes(kept.read_bytes() + b"x")
    with pytest.raises(WeightsMismatch, match=f"expected {first.sha256}"):
        checkpoints.load(at(site))


def test_downloads_at_the_same_time_do_not_disturb_each_other(site: str, empty_cache: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: checkpoints.fetch(at(site)), range(4)))
    assert set(paths) == {empty_cache / SPEC.weights}
    assert len(list(empty_cache.iterdir())) == 2
    assert checkpoints.load(at(site)).state


def test_a_download_with_another_hash_is_not_kept(site: str, empty_cache: Path) -> None:
    with pytest.raises(WeightsMismatch, match="nothing was kept"):
        checkpoints.load(at(site, sha256="0" * 64))
    assert list(empty_cache.iterdir()) == []


def test_a_known_hash_is_checked_wherever_the_file_lies(
    published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(WEIGHTS_DIR_VARIABLE, str(published))
    digest = hashlib.sha256((published / SPEC.weights).read_bytes()).hexdigest()
    assert checkpoints.load(replace(SPEC, sha256=digest)).sha256 == digest
    with pytest.raises(WeightsMismatch, match="delete it and fetch it again"):
        checkpoints.load(replace(SPEC, sha256="0" * 64))


@pytest.mark.parametrize("path", ["missing.pt", ":1/refused"])
def test_offline_the_error_says_what_to_do(site: str, empty_cache: Path, path: str) -> None:
    url = f"{site}/{path}" if path.endswith(".pt") else "http://127.0.0.1:1/refused.pt"
    with pytest.raises(DownloadFailed) as caught:
        checkpoints.load(replace(SPEC, url=url))
    message = str(caught.value)
    for part in (SPEC.weights, url, str(empty_cache), WEIGHTS_DIR_VARIABLE):
        assert part in message


def test_wrong_files_are_refused(tmp_path: Path, model: AudioEmbedder) -> None:
    pickle_bomb = tmp_path / "bomb.pt"
    pickle_bomb.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    garbage = tmp_path / "garbage.safetensors"
    garbage.write_bytes(b"not a header at all")
    whole_model = tmp_path / "list.pt"
    torch.save([1, 2, 3], whole_model)
    for path in (pickle_bomb, garbage, whole_model):
        with pytest.raises(WeightsMismatch, match=path.name):
            AudioEmbedder.load("mn01_as", weights=path)
    with pytest.raises(WeightsNotFound, match="no weights file"):
        AudioEmbedder.load("mn01_as", weights=tmp_path / "absent.pt")
    torch.save(model.backbone.state_dict(), tmp_path / "mn01.pt")
    with pytest.raises(WeightsMismatch, match="does not fit mn02_as"):
        AudioEmbedder.load("mn02_as", weights=tmp_path / "mn01.pt")


@pytest.mark.parametrize("half", [False, True])
def test_self_describing_checkpoints_carry_labels(tmp_path: Path, half: bool) -> None:
    path = tmp_path / "animals.safetensors"
    spec = replace(
        SPEC, network=replace(SPEC.network, n_classes=3), taps=("b5", "mel"), weights="", url=""
    )
    trained = AudioEmbedder("animals", spec, labels=("cat", "dog", "gnu"))
    checkpoints.save(path, spec, trained.backbone.state_dict(), trained.labels, half=half)
    loaded = AudioEmbedder.load(str(path), device="cpu")
    assert (loaded.name, loaded.labels, loaded.taps) == (
        "animals",
        ("cat", "dog", "gnu"),
        ("b5", "mel"),
    )
    assert (loaded.spec.network, loaded.spec.mel) == (spec.network, spec.mel)
    clip = torch.randn(1, 8_000) * 0.1
    assert loaded.tags(clip).shape == (1, 3)
    assert torch.allclose(loaded.scene(clip), trained.scene(clip), atol=1e-2 if half else 0)


def test_a_bare_safetensors_file_is_no_model(tmp_path: Path, model: AudioEmbedder) -> None:
    save_file(model.backbone.state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(WeightsMismatch, match="does not say which model"):
        AudioEmbedder.load(str(tmp_path / "bare.safetensors"))
    with pytest.raises(WeightsNotFound, match="no checkpoint"):
        AudioEmbedder.load(str(tmp_path / "absent.safetensors"))


def test_redirects_that_leave_https_are_refused(site: str, empty_cache: Path) -> None:
    with pytest.raises(DownloadFailed, match="redirected to http://"):
        checkpoints.load(at(f"{site}/moved"))
    assert list(empty_cache.iterdir()) == []


def test_downloads_have_a_greatest_size(
    site: str, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD", 1 << 16)
    with pytest.raises(DownloadFailed, match="more than 0 MB"):
        checkpoints.load(at(site))
    assert list(empty_cache.iterdir()) == []


def test_a_damaged_record_of_a_hash_is_no_hash(site: str, empty_cache: Path) -> None:
    checkpoints.load(at(site))
    (empty_cache / f"{SPEC.weights}.sha256").write_bytes(b"\xff")
    with pytest.raises(WeightsMismatch, match="holds no SHA-256; delete it"):
        checkpoints.load(at(site))


def test_a_file_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Path) -> str:
        raise PermissionError("not yours")

    monkeypatch.setattr(checkpoints, "file_sha256", refuse)
    (tmp_path / "secret.pt").touch()
    with pytest.raises(WeightsNotFound, match="check its permissions"):
        AudioEmbedder.load("mn01_as", weights=tmp_path / "secret.pt")
