"""What can be scored: models of the zoo, checkpoints, and any other HEAR module.

mn04_as                      a model of the zoo, through `hear_api`
runs/x/model.safetensors     a self-describing checkpoint
mn04_as=weights.pt           a checkpoint of a named model
module:hearbaseline          any module that heareval accepts
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
    """A model that is to be scored: its name in the tables, and how heareval loads it."""

    label: str
    module: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weights: Path | None = None

    @property
    def folder(self) -> str:
        """The name of the folder for its results: the label, and a hash of all else."""
        identity = json.dumps([self.module, self.options, str(self.weights)], sort_keys=True)
        digest = hashlib.sha256(identity.encode()).hexdigest()[:8]
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
    """Return the candidate that the user means by `text`, as the table above says.

    `options` are passed to `load_model`, and shown in the label.

    Raises
    ------
    EmbedderError : there is no such model or file, or its weights cannot be loaded.
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
        checkpoints.load(spec, weights or None)  # bad weights are refused before anything runs
        file = Path(weights).resolve() if weights else None
        made = Candidate(name, OURS, {"name": name, **options}, file)
    return made if not options else replace(made, label=f"{made.label} {_short(options)}")


def describe(kit: Kit, candidate: Candidate) -> Described:
    """Load a candidate inside the kit and describe its model; KitFailed if it does not load."""
    weights = [str(candidate.weights)] if candidate.weights else []
    options = json.dumps(dict(candidate.options))
    command = kit.command("--options", options, "--describe", candidate.module)
    done = subprocess.run(
        [*command, *weights], env=kit.variables(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        last_line = done.stderr.strip().splitlines()[-1:] or ["nothing"]
        raise KitFailed(f"{candidate.label} does not load inside the kit; it said: {last_line[0]}")
    return Described(candidate, **json.loads(done.stdout.splitlines()[-1]))


def validate(kit: Kit, candidate: Candidate) -> str:
    """Run the official validator on a candidate; return its output.

    Raises KitFailed, with the end of the output, if the validator refuses the candidate.
    """
    weights = ["--model", str(candidate.weights)] if candidate.weights else []
    options = json.dumps(dict(candidate.options))
    command = kit.command("--options", options, "hearvalidator.validate")
    done = subprocess.run(
        [*command, candidate.module, *weights],
        env=kit.variables(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or "Looks good!" not in done.stdout:
        output = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise KitFailed(f"hearvalidator refuses {candidate.label}:\n{output}")
    return done.stdout + done.stderr


def parse_options(text: str) -> dict[str, Any]:
    """Parse the JSON object of `--model-options`; BadRequest if it is none."""
    try:
        options = json.loads(text)
    except ValueError as error:
        raise BadRequest(f"--model-options is no JSON: {error}") from error
    if not isinstance(options, dict):
        raise BadRequest('--model-options must be a JSON object, such as {"taps": ["mel"]}')
    return options


def _short(options: Mapping[str, Any]) -> str:
    """Write options as they stand in a label: "taps=mel+b5"."""
    return " ".join(
        f"{key}={'+'.join(map(str, value)) if isinstance(value, list) else value}"
        for key, value in options.items()
    )
