"""Every sample of README.md and docs/ runs as it is written, or a table says why it is not run."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer.main

from embedder.cli import app, late
from tests.sample_kit import PAGES, Sample, Shell, prepare, samples, write_published

NETWORK, MINUTES = "takes a package index", "takes minutes or hours"
# What is not run, by how it begins, and why.
NOT_RUN = {
    "make test": "these are the tests",
    "pip install -e": NETWORK,
    "embedder detect recording.wav --model runs/events/": "takes what training of minutes wrote",
    "torchrun ": MINUTES,
    "embedder hear ": "installs the HEAR kit, or takes its tasks",
    "python -m heareval": "installs the HEAR kit",
    "python -m hearvalidator": "installs the HEAR kit",
    "embedder train finetune": MINUTES,
    "embedder train corpus": MINUTES,
    "embedder train distill": MINUTES,
    "embedder train logits": "takes AudioSet",
    "embedder train mixtures": "takes ESC-10",
    "embedder train detector": MINUTES,
    "embedder score events": "takes what training of minutes wrote",
    "embedder bench abuse": MINUTES,
}
# What only `make slow` runs, and why.
SLOW = {
    "embedder export": "half a minute each",
    "from pathlib import Path\n\nfrom embedder import AudioEmbedder\n": "exports as well",
    "import json\nimport wave\n\nimport numpy": "takes an export",
    "embedder models --profile": "measures networks for half a minute",
}
# Packages that no extra of ours installs for the tests.
ALSO_TAKES = {"from openai": "openai", "import mteb": "mteb"}
SAMPLES = {page.name: list(samples(page)) for page in PAGES}
EVERY = [sample for page in SAMPLES.values() for sample in page]


def reason(sample: Sample, table: dict[str, str]) -> str | None:
    for beginning, why in table.items():
        if f"{sample.text} ".startswith(beginning):
            return why
    return None


def lacks_a_package(sample: Sample) -> bool:
    return any(text in sample.text and find_spec(name) is None for text, name in ALSO_TAKES.items())


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_published(tmp_path_factory.mktemp("published") / "weights")


@pytest.fixture
def shell(tmp_path: Path, weights: Path) -> Iterator[Shell]:
    (tmp_path / "work").mkdir()
    made = Shell(prepare(tmp_path / "work"), weights, weights.parent / "cache")
    yield made
    made.close()


def run_page(page: str, shell: Shell, slow: bool) -> int:
    """Run a page's samples in their order; how many."""
    done = 0
    for sample in SAMPLES[page]:
        left_out = reason(sample, NOT_RUN) or (not slow and reason(sample, SLOW))
        if left_out or lacks_a_package(sample) or sample.language not in ("sh", "python"):
            continue
        try:
            shell.run(sample)
        except subprocess.CalledProcessError as error:
            said = error.stderr.decode()[-2000:]
            pytest.fail(f"{page}, block at line {sample.line}: {sample.text}\n{said}")
        done += 1
    return done


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", ["README.md", "cli.md", "python.md", "service.md", "training.md"])
def test_the_samples_of_a_page_run(page: str, shell: Shell) -> None:
    assert run_page(page, shell, slow=False)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", SAMPLES)
def test_all_samples_of_a_page_run(page: str, shell: Shell) -> None:
    run_page(page, shell, slow=True)


@pytest.mark.parametrize("sample", EVERY, ids=lambda sample: f"{sample.page}:{sample.line}")
def test_a_sample_is_well_formed(sample: Sample) -> None:
    if sample.language == "sh":
        subprocess.run(["bash", "-n", "-c", sample.text], check=True)
        check_options(sample.text)
    else:
        assert sample.language == "python", f"no way to run {sample.language}"
        compile(sample.text, sample.page, "exec")


def check_options(command: str) -> None:
    """Every option of a command of ours exists, whether it is run or not."""
    match = re.search(r"(?:^|\| |-m )embedder (.*)", command)
    if match is None:
        return
    name, *words = shlex.split(match[1].partition(" | ")[0], comments=True)
    known: Any = vars(typer.main.get_command(app))["commands"][name]
    if name in late.GROUPS:
        known = late.command(name, words[0])
    options = {text for option in known.params for text in option.opts}
    assert {word for word in words if word.startswith("--")} <= options, command


def test_the_tables_name_samples_that_there_are() -> None:
    for table in (NOT_RUN, SLOW):
        for beginning in table:
            some = [sample for sample in EVERY if reason(sample, {beginning: ""}) is not None]
            assert some, beginning
