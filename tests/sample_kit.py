"""Reads the samples of README.md and docs/, and makes the files that they name."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import torch
from markdown_it import MarkdownIt

from embedder import checkpoints
from embedder.defaults import DEFAULT_DETECTOR
from embedder.model import AudioEmbedder
from embedder.zoo import lookup
from eval.bench.material import clip, encoded
from tests.service_kit import free_port
from tests.shared import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ADDRESS = "127.0.0.1:8000"  # of the server that samples speak to
# Published checkpoints that samples name; random weights stand in for them.
WEIGHTS = ("mn10_as", "dymn10_as", "fmn10_strong", "fmn10+tf-256_strong", DEFAULT_DETECTOR)
SHELL = ("sh", "console")
_SERVE = re.compile(r"((?:\w+=\S+ )*)(?:embedder|make) serve\b")


@dataclass(frozen=True, slots=True)
class Sample:
    """A command of a shell, or a block of Python."""

    page: str
    line: int
    language: str
    text: str


def samples(page: Path) -> Iterator[Sample]:
    """The commands and programs in a page's fenced blocks, in order."""
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        if token.type == "fence" and token.map:
            line = token.map[0] + 1
            if token.info in SHELL:
                for command in commands(token.content, token.info):
                    yield Sample(page.name, line, "sh", command)
            elif token.info:
                yield Sample(page.name, line, token.info, token.content)


def commands(block: str, language: str) -> list[str]:
    """The commands of a block; those of a console follow a "$ "."""
    lines = block.replace("\\\n", " ").splitlines()
    if language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line for line in lines if line.strip()]


def prepare(folder: Path) -> Path:
    """Write the files that samples name."""
    second = encoded(clip(0, 1.0, 44_100), "wav", 44_100)
    long = encoded(clip(1, 12.0), "wav")
    named = {"dog.wav": second, "street.wav": second, "street.mp3": second, "recording.wav": second}
    named |= {"long.flac": encoded(clip(1, 12.0), "flac"), "recordings/a.wav": second}
    named |= {"recordings/b.opus": encoded(clip(2, 1.0), "ogg"), "more/c.flac": long}
    for number in range(8):
        kind = ("bark", "meow")[number % 2]
        named[f"sounds/{kind}/{number}.wav"] = encoded(clip(number, 0.5), "wav")
    for name, content in named.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    tiny = AudioEmbedder.build("mn01_as")
    for name in ("tuned.safetensors", "runs/barks/barks.safetensors"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        checkpoints.save(folder / name, tiny.spec, tiny.backbone.state_dict(), tiny.labels)
    return folder


def write_published(folder: Path) -> Path:
    """Random weights under the names of published checkpoints."""
    folder.mkdir()
    torch.manual_seed(0)
    for name in WEIGHTS:
        state = AudioEmbedder.build(name).backbone.state_dict()
        torch.save(state, folder / lookup(name).weights)
    return folder


class Shell:
    """Runs samples in one folder, where `embedder` and `python` are this source tree's."""

    def __init__(self, folder: Path, weights: Path, cache: Path) -> None:
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self._port = 0
        tools = folder.with_name(f"{folder.name}-bin")
        tools.mkdir()
        script = f"#!{sys.executable}\nimport sys\nfrom embedder.cli import main\n\n"
        (tools / "embedder").write_text(
            f'{script}if __name__ == "__main__":\n    sys.exit(main())\n'
        )
        (tools / "embedder").chmod(0o755)
        (tools / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (tools / "python").chmod(0o755)
        # curl takes an error of the server for success, unless it is told.
        (tools / ".curlrc").write_text('fail\nsilent\nshow-error\nnoproxy = "*"\n')
        self._environment = {
            **{name: text for name, text in os.environ.items() if "EMBEDDER" not in name},
            "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}",
            "CURL_HOME": str(tools),
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(cache),
            "EMBEDDER_WEIGHTS_DIR": str(weights),
            "EMBEDDER_DEVICE": "cpu",
        }

    def run(self, sample: Sample) -> None:
        """Run as written, but for the server's address; CalledProcessError if it fails."""
        if serving := _SERVE.match(sample.text):
            self._serve(sample.text, serving[1])
            return
        text = sample.text.replace(ADDRESS, f"127.0.0.1:{self._port}")
        if sample.language == "python":
            command = [sys.executable, "-c", text]
        else:
            command = ["bash", "-o", "pipefail", "-c", text]
        subprocess.run(
            command, cwd=self._folder, env=self._environment, check=True, capture_output=True
        )

    def close(self) -> None:
        """End the server."""
        if self._server is not None:
            self._server.terminate()
            self._server.wait(60)

    def _serve(self, text: str, variables: str) -> None:
        """Start what a sample starts; `make serve`, which installs as well, is `embedder serve`."""
        self.close()
        self._port = free_port()
        text = text.replace("make serve", "embedder serve").replace("--port 8000", "")
        given = dict(word.split("=", 1) for word in variables.split())
        environment = self._environment | given | {"EMBEDDER_PORT": str(self._port)}
        self._server = subprocess.Popen(
            ["bash", "-c", f"exec {text.removeprefix(variables)}"],
            cwd=self._folder,
            env=environment,
        )
        deadline = time.monotonic() + 120
        while not self._ready():
            assert self._server.poll() is None
            assert time.monotonic() < deadline, "the server did not get ready"
            time.sleep(0.1)

    def _ready(self) -> bool:
        try:
            url = f"http://127.0.0.1:{self._port}/readyz"
            return httpx.get(url, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False
