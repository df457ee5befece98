"""The audio of a request, which comes as the multipart field `file` or as the raw body."""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Awaitable
from typing import Final, TypeVar

from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from embedder.errors import BadAudio, BadRequest
from service.errors import UnsupportedEncoding

FIELD: Final = "file"
# Bytes that a form may have beside the file: boundaries, headers of parts, small other fields.
MULTIPART_OVERHEAD: Final = 1 << 16
_MAX_PARTS: Final = 16
_FORM: Final = "multipart/form-data"
_CHARSETS: Final = frozenset({"utf-8", "ascii", "iso8859-1"})  # the names in `codecs`
_PLAIN: Final = frozenset({"", "binary", "8bit", "7bit"})  # Content-Transfer-Encoding

T = TypeVar("T")


class _InMemory(MultiPartParser):
    """A parser that never writes to disk; the size of a body was limited before."""

    spool_max_size = 0  # unlimited, for tempfile.SpooledTemporaryFile


async def read(request: Request, options: frozenset[str] = frozenset()) -> bytes:
    """Read the uploaded bytes; `options` names the options of the query string.

    Raises
    ------
    BadRequest : the form is malformed, or has anything but one file in the field.
    BadAudio : nothing was sent.
    UnsupportedEncoding : the body is compressed.
    """
    check_uncompressed(request)
    if is_form(request):
        data = await _from_form(request, options)
    else:
        data = await request.body()
    if not data:
        raise BadAudio("no audio was sent; post a file in the field 'file', or as the body")
    return data


def check_uncompressed(request: Request) -> None:
    """Raise UnsupportedEncoding if the body is compressed."""
    encoding = request.headers.get("content-encoding", "").strip().lower()
    if encoding not in ("", "identity"):
        raise UnsupportedEncoding(encoding)


def is_form(request: Request) -> bool:
    """Return whether the request's headers call the body a multipart form."""
    content_type = request.headers.get("content-type", "")
    return content_type.partition(";")[0].strip().lower() == _FORM


async def _from_form(request: Request, options: frozenset[str]) -> bytes:
    stream = request.stream()
    parser = _InMemory(
        request.headers,
        stream,
        max_files=_MAX_PARTS,
        max_fields=_MAX_PARTS,
        max_part_size=MULTIPART_OVERHEAD,
    )
    try:
        _check_charset(request.headers.get("content-type", ""))
        form = await parser.parse()
        try:
            return await _only_file(form, options).read()
        finally:
            await form.close()
    except (BadRequest, MultiPartException) as error:
        # Read the rest, too: closing the connection during the upload would lose the answer.
        async for _ in stream:
            pass
        if isinstance(error, MultiPartException):
            raise BadRequest(f"malformed multipart body: {error.message}") from error
        raise


def _only_file(form: FormData, options: frozenset[str]) -> UploadFile:
    """Return the file of a form; raise BadRequest if there is none, or anything beside it."""
    files = [field for field in form.getlist(FIELD) if isinstance(field, UploadFile)]
    for name in form:
        if name in options:
            raise BadRequest(
                f"the option {name!r} goes into the query string, not into the form: ?{name}=..."
            )
        if name != FIELD and files:
            raise BadRequest(f"no field {name!r}; a form has one field, {FIELD!r}, with a file")
    if not files:
        raise BadRequest(f"no file in the field {FIELD!r}; use curl -F {FIELD}=@sound.wav")
    if len(form.multi_items()) > 1:
        raise BadRequest(f"{len(form.multi_items())} files in one form; send one file a request")
    encoding = files[0].headers.get("content-transfer-encoding", "").strip().lower()
    if encoding not in _PLAIN:
        raise BadRequest(f"the file is encoded as {encoding!r}; send its bytes as they are")
    return files[0]


def _check_charset(content_type: str) -> None:
    """Raise BadRequest for a charset in which the names of fields cannot be compared.

    Some of Python's codecs are no charsets ("undefined", "idna") and fail while they decode.
    """
    _, options = parse_options_header(content_type)
    charset = options.get(b"charset", b"utf-8").decode("latin-1")
    try:
        known = codecs.lookup(charset).name in _CHARSETS
    except (LookupError, ValueError):
        known = False
    if not known:
        raise BadRequest(f"charset {charset[:40]!r} is not read; leave it out, or send UTF-8")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return the result of the work; cancel it when the client hangs up.

    The body must have been read before: then the next message is the end of the connection.

    Raises
    ------
    ClientDisconnect : the client has hung up.
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
        await asyncio.wait({task, gone})  # the work's memory is counted until it has ended


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
