"""Write and read the description of a model that a checkpoint carries.

A file may come from anyone, so that every value is checked before a network is built from it.
The types are those of the configurations in zoo.py, so that no second schema can disagree.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from embedder.zoo import DyMNConfig, FrameMNConfig, MelConfig, MNConfig, ModelSpec, NetworkConfig

Config = TypeVar("Config", bound=NetworkConfig | MelConfig)

# Configurations of networks by the family name that checkpoints carry.
FAMILIES: Final[Mapping[str, type[NetworkConfig]]] = types.MappingProxyType(
    {"mn": MNConfig, "dymn": DyMNConfig, "fmn": FrameMNConfig}
)
# Least and greatest values by name, well beyond those of all published models. The largest network
# that they allow takes some 2 GB.
RANGES: Final[Mapping[str, tuple[float, float]]] = types.MappingProxyType(
    {
        "width": (0.05, 5.0),
        "strides": (1, 4),
        "dilation": (1, 8),
        "n_classes": (1, 20_000),
        "kernels": (1, 8),
        "mappings": (1, 8),
        "reduction": (1, 64),
        "min_context": (1, 512),
        "max_context": (1, 512),
        "temperature": (0.01, 1_000.0),
        "dim": (8, 2_048),
        "sample_rate": (1_000, 384_000),
        "window": (2, 16_384),
        "hop": (1, 16_384),
        "n_fft": (2, 16_384),
        "n_mels": (1, 1_024),
        "fmin": (0.0, 192_000.0),
        "fmax": (0.0, 192_000.0),
        "floor": (1e-30, 1.0),
    }
)
LEAST_HOP_MS: Final = 1  # less would make spectrograms larger than the waveform
LABEL_CHARACTERS: Final = 1_000
TAPS: Final = 256


def spec_to_json(spec: ModelSpec) -> dict[str, Any]:
    """The description of a model, for a checkpoint."""
    family = next(name for name, config in FAMILIES.items() if type(spec.network) is config)
    return {
        "family": family,
        "network": asdict(spec.network),
        "mel": asdict(spec.mel),
        "taps": spec.taps,
    }


def spec_from_json(description: Mapping[str, Any]) -> ModelSpec:
    """Read a description that `spec_to_json` made.

    Raises KeyError, TypeError or ValueError for a description that makes no sense.
    """
    network = _config(FAMILIES[_text(description["family"])], description["network"])
    mel = _config(MelConfig, description["mel"])
    _check_mel(mel)
    if isinstance(network, DyMNConfig) and network.min_context > network.max_context:
        raise ValueError("min_context is greater than max_context")
    return ModelSpec(
        network=network, mel=mel, weights="", taps=texts(description["taps"], at_most=TAPS)
    )


def labels_from_json(labels: Any, spec: ModelSpec) -> tuple[str, ...]:
    """Check that there is a label for each class of a model; else raise TypeError or ValueError."""
    names = texts(labels, at_most=spec.network.n_classes)
    if len(names) != spec.network.n_classes:
        raise ValueError(f"{len(names)} labels for {spec.network.n_classes} classes")
    return names


def texts(values: Any, at_most: int) -> tuple[str, ...]:
    """Check a list of names that came as JSON; raise ValueError for anything else."""
    if not isinstance(values, list | tuple) or not 1 <= len(values) <= at_most:
        raise ValueError(f"not a list of 1 to {at_most} names")
    return tuple(map(_text, values))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= LABEL_CHARACTERS:
        raise ValueError(f"not a name of 1 to {LABEL_CHARACTERS} characters")
    value.encode()  # UnicodeEncodeError, a ValueError, for half a character
    return value


def _config(kind: type[Config], values: Any) -> Config:
    """Build a configuration from the fields that a description names."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is no object")
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    if unknown := sorted(values.keys() - known):
        raise ValueError(f"{kind.__name__} has no {unknown[0][:LABEL_CHARACTERS]!r}")
    return kind(**{name: _value(name, hints[name], value) for name, value in values.items()})


def _value(name: str, hint: Any, value: Any) -> Any:
    """Check that a value has the type of its field and lies in its range."""
    value = tuple(value) if isinstance(value, list) else value
    if not _fits(hint, value):
        raise TypeError(f"{name} is of another type")
    numbers = value if isinstance(value, tuple) else (value,)
    low, high = RANGES.get(name, (0, 0))
    if name in RANGES and not all(low <= number <= high for number in numbers):
        raise ValueError(f"{name} does not lie within {low} and {high}")
    return value


def _fits(hint: Any, value: Any) -> bool:
    """Whether a value has the type of a type hint; an int is a float, a bool is no int."""
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return type(value) is str and value in inside
    if origin in (Union, types.UnionType):
        return any(_fits(choice, value) for choice in inside)
    if origin is tuple:
        return (
            isinstance(value, tuple)
            and len(value) == len(inside)
            and all(map(_fits, inside, value))
        )
    return type(value) in ((int, float) if hint is float else (hint,))


def _check_mel(mel: MelConfig) -> None:
    problems = {
        "window is longer than n_fft": mel.window > mel.n_fft,
        "hop is shorter than a millisecond": 1000 * mel.hop < LEAST_HOP_MS * mel.sample_rate,
        "fmin is not below fmax": mel.fmin >= mel.fmax,
        "fmax is above half the sample rate": 2 * mel.fmax > mel.sample_rate,
    }
    for problem, holds in problems.items():
        if holds:
            raise ValueError(problem)
