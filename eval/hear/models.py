"""What can be judged: models of the zoo, checkpoints, and any other HEAR module.

mn04_as                      a model of the zoo, through `hear_api`
runs/x/model.safetensors     a self-describing checkpoint
mn04_as=weights.pt           a checkpoint of a named model
module:hearbaseline          any module heareval accepts
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from embedder import checkpoints
from embedder.errors import BadRequest
from embedder.zoo import lookup
from eval.hear.environment import Kit, KitFailed

OURS: Final = "hear_api"
MODULE_PREFIX: Final = "module:"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the table: how heareval is to load it, and what it is called there."""

    label: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None

    @property
    def folder(self) -> str:
        """A folder name for its results: the label, made safe and unmistakable."""
        known = json.dumps([self.module, self.options, str(self.weights)], sort_keys=True)
        digest = hashlib.sha256(known.encode()).hexdigest()[:8]
        return f"{re.sub(r'[^A-Za-z0-9_+-]+', '-', self.label)[:60]}-{digest}"


@dataclass(frozen=True, slots=True)
class Described:
    """A candidate as it is when loaded inside the kit.

    `identity` is all that decides its numbers, if it is one of our models.
    """

    candidate: Candidate
    sample_rate: int
    scene_embedding_size: int
    timestamp_embedding_size: int
    parameters: int
    state_sha256: str
    identity: Mapping[str, Any] = field(default_factory=dict)


def candidate(text: str, options: Mapping[str, Any] | None = None) -> Candidate:
    """What the user wrote, as the table at the top of this module says.

    `options` go to `load_model`, and into the label.

    Raises
    ------
    EmbedderError : no such model or file, or weights that cannot be had.
    """
    options = dict(options or {})
    label = text.removeprefix(MODULE_PREFIX)
    if text.startswith(MODULE_PREFIX):
        made = Candidate(label, label, options)
    elif text.endswith(".safetensors") and "=" not in text:
        path = Path(text).resolve()
        checkpoints.read_described(path)
        made = Candidate(path.stem, OURS, {"name": str(path), **options})
    else:
        name, _, weights = text.partition("=")
        spec = lookup(name)
        checkpoints.load(spec, weights or None)  # found, fetched or refused before anything runs
        file = Path(weights).resolve() if weights else None
        made = Candidate(name, OURS, {"name": name, **options}, file)
    return made if not options else replace(made, label=f"{made.label} {_short(options)}")


def describe(kit: Kit, one: Candidate) -> Described:
    """Load it inside the kit and look; KitFailed says why that was not possible."""
    weights = [str(one.weights)] if one.weights else []
    command = kit.command("--options", json.dumps(dict(one.options)), "--describe", one.module)
    done = subprocess.run(
        [*command, *weights], env=kit.variables(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise KitFailed(f"{one.label} does not load inside the kit; it said: {said[0]}")
    return Described(one, **json.loads(done.stdout.splitlines()[-1]))


def validate(kit: Kit, one: Candidate) -> str:
    """Put it through the official validator; returns what that said, or raises KitFailed."""
    weights = ["--model", str(one.weights)] if one.weights else []
    command = kit.command("--options", json.dumps(dict(one.options)), "hearvalidator.validate")
    done = subprocess.run(
        [*command, one.module, *weights],
        env=kit.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "Looks good!" not in done.stdout:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise KitFailed(f"hearvalidator refuses {one.label}:\n{said}")
    return done.stdout + done.stderr


def parse_options(text: str) -> dict[str, Any]:
    """The JSON object of `--model-options`."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise BadRequest(f"--model-options is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise BadRequest('--model-options must be a JSON object, such as {"taps": ["mel"]}')
    return options


def _short(options: Mapping[str, Any]) -> str:
    return " ".join(
        f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in options.items()
    )
