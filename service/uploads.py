"""The audio of a request: a multipart field `file`, or the raw body."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Final, TypeVar

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from embedder.errors import BadAudio, BadRequest

FIELD: Final = "file"
# Around the file: boundaries, headers of parts, small other fields.
MULTIPART_OVERHEAD: Final = 1 << 16
_MAX_FIELDS: Final = 16

T = TypeVar("T")


class _InMemory(MultiPartParser):
    """Never spools to disk: the body's size is limited before it comes here."""

    spool_max_size = 0  # unlimited, for tempfile.SpooledTemporaryFile


async def read(request: Request) -> bytes:
    """The uploaded bytes.

    Raises
    ------
    BadRequest : a multipart body that is malformed or has no file in the field.
    BadAudio : nothing was sent.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        data = await _from_form(request)
    else:
        data = await request.body()
    if not data:
        raise BadAudio("no audio was sent; post a file in the field 'file', or as the body")
    return data


async def _from_form(request: Request) -> bytes:
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=1,
        max_fields=_MAX_FIELDS,
        max_part_size=MULTIPART_OVERHEAD,
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequest(f"malformed multipart body: {error.message}") from error
    try:
        field = form.get(FIELD)
        if not isinstance(field, UploadFile):
            raise BadRequest(f"no file in the field {FIELD!r}; use curl -F {FIELD}=@sound.wav")
        return await field.read()
    finally:
        await form.close()


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of the work; given up with ClientDisconnect when the client hangs up.

    Only after the body was read: whatever arrives next is the end of the connection.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.wait({task, gone})  # what the work holds is counted until it has ended


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
