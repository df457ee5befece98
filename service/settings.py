"""All settings of the server, which come from environment variables (EMBEDDER_...)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    RedisDsn,
    SecretStr,
    ValidationError,
    field_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from embedder.defaults import DEFAULT_MODEL, HOST, PORT
from embedder.process import available_cores

MiB: Final = 1 << 20
ANY: Final = "*"  # allows any host or origin
_PREFIX: Final = "EMBEDDER_"
_SECRET: Final = ("api_key", "api_keys", "redis_url")  # never repeated in a message
_HOST_NAME: Final = re.compile(r"\*|(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_ORIGIN: Final = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[^/?#\s]+")


class Settings(BaseSettings):
    """The settings of a server, fixed for its whole life. Field `x` is the variable EMBEDDER_X."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore")

    # Address and access
    host: str = HOST
    port: int = Field(default=PORT, ge=0, le=65535)
    workers: PositiveInt = Field(
        default=1, description="Server processes, each with its own models."
    )
    root_path: str = Field(default="", description="Path prefix that a proxy in front strips.")
    api_key: SecretStr | None = Field(
        default=None, description="If set, clients must send it as a bearer token."
    )
    api_keys: Annotated[tuple[SecretStr, ...] | None, NoDecode] = Field(
        default=None, description="Several keys, separated by commas; clients send any of them."
    )
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Names that requests may be sent to, or *: see service.access."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Origins whose pages may use this server from a browser, or *."
    )

    # Models
    model: str = Field(
        default=DEFAULT_MODEL, description="Default model: a zoo name or a .safetensors."
    )
    models: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Further models, separated by commas, each loaded at its first use."
    )
    weights: Path | None = Field(default=None, description="Checkpoint of the default model.")
    device: str = "auto"
    runtime: str = Field(default="auto", description="What runs the network: embedder.runtime.")
    threads: PositiveInt | None = Field(
        default=None, description="CPU threads of one forward pass; default: a worker's cores."
    )

    # Limits of one request
    max_bytes: PositiveInt = Field(default=50_000_000, description="Encoded audio.")
    max_json_bytes: PositiveInt = Field(default=20_000_000, description="Body of /v1/embeddings.")
    max_inputs: PositiveInt = Field(default=32, description="Clips in one /v1/embeddings request.")
    max_seconds: PositiveFloat = Field(default=600, description="Decoded audio.")
    max_decode_seconds: PositiveFloat = Field(
        default=10, description="Time that decoding may take."
    )
    max_window_ms: PositiveFloat = 60_000
    max_windows: PositiveInt = 20_000
    max_values: PositiveInt = Field(
        default=40_000_000, description="Numbers in one answer: timestamps times features."
    )
    max_windows_seconds: PositiveFloat = Field(
        default=3_600, description="Sum of all windows: what the network has to compute."
    )
    body_seconds: PositiveFloat = Field(
        default=60, description="Time in which a body must have arrived."
    )

    # The life of a server
    start_seconds: PositiveFloat = Field(
        default=120,
        description="Time to retry the download of the default model; then the server ends.",
    )
    drain_seconds: PositiveFloat = Field(
        default=30, description="Time to finish after a signal to stop."
    )
    hung_seconds: PositiveFloat = Field(
        default=120, description="A batch that takes longer hangs: /livez is 503."
    )

    # Limits of all requests together
    max_requests: PositiveInt = Field(
        default=256, description="Requests that are decoded or computed; beyond: 429."
    )
    max_memory: PositiveInt = Field(
        default=1024 * MiB,
        description="Bytes for uploads, the same again for decoded audio, and for answers.",
    )

    # Batching. Longer waits make fuller batches; a lone request never waits.
    max_batch_seconds: PositiveFloat | None = Field(
        default=None,
        description="Audio in one batch; default 80 on CPU, where more is slower, else 320.",
    )
    max_wait_ms: float = Field(default=4.0, ge=0)

    # Decoding
    decode_workers: PositiveInt = Field(
        default_factory=lambda: max(2, min(4, available_cores())),
        description="Decoder processes; of several, one is kept for short uploads.",
    )
    decode_memory: PositiveInt = Field(
        default=1536 * MiB, description="Address space of one decoder."
    )
    decode_jobs: PositiveInt = Field(
        default=10_000, description="Uploads after which a decoder is replaced."
    )

    # Cache
    cache_bytes: NonNegativeInt = Field(
        default=64 * MiB, description="In-process cache; 0 for none."
    )
    cache_value_bytes: PositiveInt = Field(
        default=4 * MiB, description="Larger results are not cached."
    )
    redis_url: RedisDsn | None = Field(
        default=None, description="Cache in redis instead of in the process."
    )
    redis_timeout_ms: float = Field(
        default=250, gt=0, le=1000, description="Time that a request waits for redis."
    )
    redis_connect_timeout_ms: float = Field(
        default=2000, gt=0, le=60_000, description="Time to connect; requests do not wait for it."
    )
    cache_ttl_seconds: PositiveInt = Field(
        default=7 * 24 * 3600, description="In redis, give or take 10 %."
    )

    @property
    def threads_of_worker(self) -> int:
        """The threads of a worker: its share of the cores, since more would only wait."""
        return self.threads or max(1, available_cores() // self.workers)

    @property
    def keys(self) -> tuple[bytes, ...]:
        """All API keys as the bytes that clients send; empty if no key is needed."""
        keys = (*(self.api_keys or ()), *([self.api_key] if self.api_key else ()))
        return tuple(key.get_secret_value().encode("utf-8", "surrogateescape") for key in keys)

    @field_validator("models", "api_keys", "allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(name.strip() for name in value.split(",") if name.strip())
        return value

    @field_validator("api_key", "api_keys")
    @classmethod
    def _usable(
        cls, value: SecretStr | tuple[SecretStr, ...] | None
    ) -> SecretStr | tuple[SecretStr, ...] | None:
        if value is None:
            return None
        keys = value if isinstance(value, tuple) else (value,)
        if not keys or not all(key.get_secret_value() for key in keys):
            raise ValueError("it is empty; unset it to let everybody ask, or set a key")
        if any(set(key.get_secret_value()) & set(" \t\r\n") for key in keys):
            raise ValueError("a key with white space cannot be sent; choose another one")
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(name.lower().removesuffix(".") for name in value)
        for name in names:
            if not _HOST_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name; write example.org, *.example.org or *")
        return names

    @field_validator("cors_origins")
    @classmethod
    def _plain_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        origins = tuple(origin.lower().removesuffix("/") for origin in value)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin; write https://example.org or *")
        return origins


def faults(error: ValidationError) -> list[str]:
    """Return one line for each invalid variable."""
    return [_fault(str(fault["loc"][0]), fault["msg"], fault["input"]) for fault in error.errors()]


def _fault(field: str, message: str, value: object) -> str:
    shown = "" if field in _SECRET else f"={value}"
    return f"{_PREFIX}{field.upper()}{shown}: {message.removeprefix('Value error, ')}"
