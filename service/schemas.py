"""The documents that clients send and receive."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from embedder.defaults import MEDIAN, THRESHOLD, TOP_K

_SHOWN: Final = 40  # characters of an unknown name that a message repeats

Kind = Literal["scene", "timestamps"]
Name = Annotated[str, Field(max_length=256)]  # as long as a file's
_MAX_TAPS: Final = 10_000  # characters


class RequestOptions(BaseModel):
    """The options of a request. The error for an unknown name lists the most similar ones."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _known(cls, options: Any) -> Any:
        if not isinstance(options, dict):
            return options  # the next check says what is wrong with it
        names = list(cls.model_fields)
        unknown = [name for name in options if name not in names]
        if unknown:
            name = unknown[0][:_SHOWN]  # a long name would take long to compare
            near = get_close_matches(name.lower(), names, cutoff=0.5)
            raise PydanticCustomError(
                "unknown_option",
                "no option {name}; choose from {choices}",
                {"name": repr(name), "choices": ", ".join(near or names)},
            )
        return options


def _as_list(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise PydanticCustomError("strings", "must be a string, or a list of strings")
    return [value] if isinstance(value, str) else value


# Checking stops at the first wrong item: a million of them would make a million messages.
Strings = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(min_length=1, fail_fast=True),
    BeforeValidator(
        _as_list,
        json_schema_input_type=Annotated[str, Field(min_length=1)]
        | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)],
    ),
]


class AudioQuery(RequestOptions):
    """The options of every request that cuts audio into windows."""

    model: Name | None = Field(
        default=None, description="A name of /v1/models; the default model if it is left out."
    )
    window_ms: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    hop_ms: float | None = Field(default=None, ge=1, allow_inf_nan=False)


class TimestampsQuery(AudioQuery):
    """The options of /timestamps."""

    taps: str | None = Field(
        default=None,
        max_length=_MAX_TAPS,
        description="Features to join, in this order.",
        examples=["mel,b5,b11,b13,b15"],
    )


class EmbedQuery(TimestampsQuery):
    """The options of /embed."""

    kind: Kind = Field(
        default="scene", description="One vector for the clip, or one for every window."
    )


class TagsQuery(AudioQuery):
    """The options of /tags."""

    kind: Kind = Field(default="scene", description="Tags of the clip, or of every window.")
    top_k: int = Field(default=TOP_K, ge=1, le=10_000, description="How many tags, best first.")


class EventsQuery(RequestOptions):
    """The options of /events."""

    model: Name | None = Field(
        default=None, description="A name of /v1/models whose model finds events."
    )
    threshold: float = Field(
        default=THRESHOLD,
        gt=0,
        le=1,
        description="The lowest probability at which a label counts as sounding.",
    )
    median: int = Field(
        default=MEDIAN, ge=1, le=999, description="Width of the median filter in frames, odd."
    )
    min_duration_ms: float = Field(default=0, ge=0, allow_inf_nan=False)
    merge_gap_ms: float = Field(default=0, ge=0, allow_inf_nan=False)


class EmbedResponse(BaseModel):
    """A vector for the clip, or with kind=timestamps one for every timestamp."""

    model: str = Field(examples=["mn04_as"])
    kind: Kind
    seconds: float = Field(description="Length of the clip.")
    cached: bool
    size: int = Field(description="Length of a vector.")
    window_ms: float | None = Field(default=None, description="With kind=timestamps.")
    hop_ms: float | None = Field(default=None, description="With kind=timestamps.")
    timestamps_ms: list[float] | None = Field(default=None, description="Centres of the windows.")
    embedding: list[float] | list[list[float]]


class Tag(BaseModel):
    """A label and its probability; labels are independent of each other."""

    label: str = Field(examples=["Train"])
    score: float = Field(examples=[0.73])
    index: int = Field(description="Position among the model's labels.")


class WindowTags(BaseModel):
    """The tags of a window."""

    ms: float = Field(description="The window's centre.")
    tags: list[Tag]


class TagsResponse(BaseModel):
    """The tags of the clip, or with kind=timestamps those of every window."""

    model: str = Field(examples=["mn04_as"])
    kind: Kind
    seconds: float
    cached: bool
    tags: list[Tag] | None = None
    windows: list[WindowTags] | None = None


class SoundEvent(BaseModel):
    """A sound from onset to offset, in seconds."""

    label: str = Field(examples=["Speech"])
    onset: float = Field(examples=[0.48])
    offset: float = Field(examples=[2.12])
    score: float = Field(examples=[0.91], description="The highest probability within the event.")


class EventsResponse(BaseModel):
    """The events of the clip, ordered by onset."""

    model: str = Field(examples=["fmn10+tf-256_strong"])
    seconds: float
    cached: bool
    events: list[SoundEvent]


class Fault(BaseModel):
    """An option that is invalid: where it stands, and what is wrong."""

    where: str = Field(examples=["query.top_k"])
    what: str


class Problem(BaseModel):
    """An error (RFC 9457). Its `code` stays the same in later versions."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["bad_audio"])
    detail: str
    errors: list[Fault] | None = Field(default=None, description="With invalid_request.")


class OpenAIErrorBody(BaseModel):
    """The error that OpenAI's clients raise. Its `code` is the same as in a Problem."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="The option at fault.")
    code: str = Field(examples=["bad_audio"])


class OpenAIError(BaseModel):
    """The answer for an error of the routes below /v1."""

    error: OpenAIErrorBody


class EmbeddingsRequest(RequestOptions):
    """OpenAI's request, with audio as base64 or data URI in place of text."""

    model: Name | None = Field(default=None, examples=["mn04_as"])
    input: Strings
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(
        default=None,
        ge=1,
        description="If given, it must be the size of the vectors: vectors are never cut.",
    )
    taps: Strings | None = Field(
        default=None,
        description="Features to join, in this order: a list, or separated by commas.",
        examples=["mel,b5,b11,b13,b15", ["mel", "b5"]],
    )
    user: str | None = None

    @field_validator("taps")
    @classmethod
    def _short(cls, taps: list[str] | None) -> list[str] | None:
        if taps is not None and sum(map(len, taps)) > _MAX_TAPS:
            raise PydanticCustomError(
                "too_long", "must have at most {n} characters", {"n": _MAX_TAPS}
            )
        return taps


class Embedding(BaseModel):
    """The vector of a clip: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """The number of tokens: always 0, because audio has none, but clients expect the fields."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsResponse(BaseModel):
    """OpenAI's answer: the vectors of all clips."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """A model that this server offers."""

    id: str
    object: Literal["model"] = "model"
    owned_by: str = "audio-embedder"
    created: int = 0
    default: bool
    loaded: bool


class ModelList(BaseModel):
    """OpenAI's list of models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Info(BaseModel):
    """The server's models, limits, cache and versions."""

    version: str
    models: list[dict[str, Any]]
    limits: dict[str, Any]
    cache: str
    versions: dict[str, str]
