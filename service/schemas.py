"""What goes over the wire, as documents."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["scene", "timestamps"]


class AudioQuery(BaseModel):
    """Options of every request with audio."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="One of /v1/models; without: the default.")
    window_ms: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    hop_ms: float | None = Field(default=None, ge=1, allow_inf_nan=False)


class TimestampsQuery(AudioQuery):
    """Options of /timestamps."""

    taps: str | None = Field(
        default=None,
        description="Features to join, in this order.",
        examples=["mel,b5,b11,b13,b15"],
    )


class EmbedQuery(TimestampsQuery):
    """Options of /embed."""

    kind: Kind = Field(
        default="scene", description="One vector for the clip, or one for every window."
    )


class TagsQuery(AudioQuery):
    """Options of /tags."""

    kind: Kind = Field(default="scene", description="Tags of the clip, or of every window.")
    top_k: int = Field(default=10, ge=1, le=10_000, description="How many tags, best first.")


class EventsQuery(BaseModel):
    """Options of /events."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(default=None, description="One of /v1/models that finds events.")
    threshold: float = Field(default=0.5, gt=0, le=1, description="A label sounds from here on.")
    median: int = Field(default=9, ge=1, le=999, description="Frames of the filter, odd.")
    min_duration_ms: float = Field(default=0, ge=0, allow_inf_nan=False)
    merge_gap_ms: float = Field(default=0, ge=0, allow_inf_nan=False)


class EmbedResponse(BaseModel):
    """One vector for the clip, or with kind=timestamps one for every timestamp."""

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
    """Tags of one window."""

    ms: float = Field(description="The window's centre.")
    tags: list[Tag]


class TagsResponse(BaseModel):
    """Tags of the clip, or with kind=timestamps those of every window."""

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
    score: float = Field(examples=[0.91], description="Its highest probability.")


class EventsResponse(BaseModel):
    """The events of the clip, by onset."""

    model: str = Field(examples=["fmn10+tf-256_strong"])
    seconds: float
    cached: bool
    events: list[SoundEvent]


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable."""

    type: str = Field(examples=["about:blank"])
    title: str = Field(examples=["Unprocessable Entity"])
    status: int = Field(examples=[422])
    code: str = Field(examples=["bad_audio"])
    detail: str


class EmbeddingsRequest(BaseModel):
    """OpenAI's request, with audio as base64 or data URI where text would be."""

    model: str | None = Field(default=None, examples=["mn04_as"])
    input: Annotated[str, Field(min_length=1)] | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(default=None, description="If given: the size the model has.")
    user: str | None = None


class Embedding(BaseModel):
    """One clip's vector: numbers, or base64 of little-endian float32."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    """Audio has no tokens; clients expect the fields."""

    prompt_tokens: int = 0
    total_tokens: int = 0


class EmbeddingsResponse(BaseModel):
    """OpenAI's response."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class ModelCard(BaseModel):
    """One model that may be asked for."""

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
    """What this server is and what it takes."""

    version: str
    models: list[dict[str, Any]]
    limits: dict[str, Any]
    cache: str
    versions: dict[str, str]
