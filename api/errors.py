"""The table of errors (status, text and caching for each exception), and the error response made from it.

The client gets a phrase and a next step. A message of ours is passed on only where the table says so: where it is
about what the client asked for, and not about a store, a disk or a key. The log gets the rest, from whoever calls
this.
"""

import json
from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple

from werkzeug import exceptions as http
from werkzeug.datastructures import Headers
from werkzeug.exceptions import HTTPException
from werkzeug.http import HTTP_STATUS_CODES
from werkzeug.wrappers import Request

from api.http.negotiation import HTML, JSON, TEXT, negotiate
from api.http.text import display
from api.offload.bucket import OffloadError
from api.responses.base import ALLOWED_METHODS, Response, cache_forever, safe_headers
from api.responses.templates import render, streamed
from narcore import errors

_MESSAGE_LIMIT = 1000


class Keep(Enum):
    """How long a cache may keep the answer."""

    NOT = "no-store"
    SHORT = "public, max-age=60"
    FOREVER = "immutable"


class ErrorRow(NamedTuple):
    """``advice`` is the next step. ``tells``: the exception's own message comes before it."""

    status: int
    error: str
    advice: str
    tells: bool = False
    keep: Keep = Keep.NOT


_LATER = "Trying again later may help."
_REPAIR = "The binary cache has to be repaired; the log of this server has the details."

_NO_NODE = ErrorRow(
    404,
    "Not found",
    "The URL of a directory, with a slash at the end, lists what is there.",
    tells=True,
    keep=Keep.FOREVER,
)
_BAD_DATA = ErrorRow(502, "The binary cache gave bad data", f"What it gave breaks the format. {_REPAIR}")
_BAD_HASH = ErrorRow(502, "The binary cache gave wrong data", f"What it gave is not what was promised. {_REPAIR}")
_BAD_STREAM = ErrorRow(502, "The archive can't be unpacked", f"It is damaged, or ends early. {_REPAIR}")
_NO_ANSWER = ErrorRow(502, "The binary cache does not answer", f"It can't be reached, or fails. {_LATER}")
_BUSY = ErrorRow(503, "Busy", "There is no room or no turn for this just now. Try again in a moment.")
_FAULT = ErrorRow(500, "Something went wrong here", "The log of this server has the details.")

ROWS: dict[type[Exception], ErrorRow] = {
    errors.NarcoreError: _FAULT,
    errors.FormatError: _BAD_DATA,
    errors.NarError: _BAD_DATA,
    errors.NarInfoError: _BAD_DATA,
    errors.CacheInfoError: _BAD_DATA,
    errors.ListingError: _BAD_DATA,
    errors.HashError: _BAD_DATA,
    errors.StorePathError: ErrorRow(
        400,
        "Not a store path",
        "A store path is a store directory, a hash of 32 characters, and mostly a dash and a name.",
        tells=True,
        keep=Keep.SHORT,
    ),
    errors.IntegrityError: _BAD_HASH,
    errors.HashMismatch: _BAD_HASH,
    errors.SizeMismatch: _BAD_HASH,
    errors.UntrustedSignature: ErrorRow(
        502, "Not signed by a trusted key", "This server only serves what one of its trusted public keys has signed."
    ),
    errors.CompressionError: _BAD_STREAM,
    errors.TruncatedStream: _BAD_STREAM,
    errors.CorruptStream: _BAD_STREAM,
    errors.UnknownCompression: ErrorRow(
        502, "The archive can't be unpacked", "This server can't read its compression."
    ),
    errors.StoreError: _NO_ANSWER,
    errors.FileNotInStore: ErrorRow(
        404, "No such store path", "None of the caches that are asked has it. Is the hash right?", keep=Keep.SHORT
    ),
    errors.StoreForbidden: ErrorRow(502, "The binary cache refuses", f"It does not let this server read. {_REPAIR}"),
    errors.RangeNotSupported: _NO_ANSWER,
    errors.StoreUnavailable: _NO_ANSWER,
    errors.StoreTimeout: ErrorRow(504, "The binary cache is too slow", _LATER),
    errors.StoresUnavailable: ErrorRow(
        502, "Not all caches answer", f"Some of the caches could not be asked, and the others don't have it. {_LATER}"
    ),
    errors.StoresTimeout: ErrorRow(
        504, "Not all caches answer", f"Some of the caches are too slow, and the others don't have it. {_LATER}"
    ),
    errors.PathError: _NO_NODE,
    errors.NoSuchNode: _NO_NODE,
    errors.NotADirectory: _NO_NODE,
    errors.SymlinkLoop: _NO_NODE,
    errors.OutsideStore: _NO_NODE,
    errors.InOtherStorePath: _NO_NODE,
    errors.CapacityError: _BUSY,
    errors.CacheFailure: _BUSY,
    errors.MountError: _FAULT,
    errors.NarTooLarge: ErrorRow(
        413, "Too large for this server", "It is set up to unpack smaller archives only.", keep=Keep.SHORT
    ),
    errors.SettingsError: _FAULT,
    http.BadRequest: ErrorRow(400, "Bad request", "Correct the URL and try again.", keep=Keep.SHORT),
    http.NotFound: ErrorRow(404, "Not found", "Nothing is served at this URL; store paths are.", keep=Keep.SHORT),
    http.MethodNotAllowed: ErrorRow(405, "Method not allowed", "Files can be read (GET, HEAD), and nothing else."),
    http.RequestEntityTooLarge: ErrorRow(413, "Too large for one answer", "", keep=Keep.SHORT),
    http.PreconditionFailed: ErrorRow(
        412, "Precondition failed", "This is not the version that If-Match or its like names."
    ),
    OffloadError: ErrorRow(502, "Large files can't be had", f"The bucket that they are put into fails. {_LATER}"),
    http.RequestedRangeNotSatisfiable: ErrorRow(
        416,
        "Range not satisfiable",
        "No range begins inside the file, or there are too many, or too many that overlap.",
    ),
    Exception: _FAULT,
}


def error_response(request: Request, error: Exception) -> Response:
    """The answer to a request that ended in ``error``, of any kind: JSON, HTML or one line of text, by Accept."""
    row = _row_for(error)
    headers = safe_headers()
    headers["Vary"] = "Accept"
    if row.keep is Keep.FOREVER:
        cache_forever(headers)
    else:
        headers["Cache-Control"] = row.keep.value
    for name, value in _special_headers(error):
        headers[name] = value
    return _answer(request, row, f"{_message(error, row)} {row.advice}".strip(), headers)


def _row_for(error: Exception) -> ErrorRow:
    """That of the nearest class. An HTTPException without one of its own keeps its status and Werkzeug's words."""
    row = next(ROWS[base] for base in type(error).__mro__ if base in ROWS)
    if row is _FAULT and isinstance(error, HTTPException) and error.code:
        return ErrorRow(error.code, HTTP_STATUS_CODES.get(error.code, "Error"), "")
    return row


def _message(error: Exception, row: ErrorRow) -> str:
    """The words of the exception that are for the client, as one sentence or two."""
    if isinstance(error, HTTPException):
        # A description that was given on raising is ours and for the client; the class's own is Werkzeug's.
        own = error.description != type(error).description or not row.advice
        text = (error.description or "") if own else ""
    else:
        text = str(error) if row.tells else ""
    text = display(text[:_MESSAGE_LIMIT])
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def _special_headers(error: Exception) -> Iterable[tuple[str, str]]:
    if isinstance(error, errors.CapacityError):
        yield "Retry-After", str(error.retry_after)
    if isinstance(error, http.MethodNotAllowed):
        yield "Allow", ", ".join(error.valid_methods or ()) or ALLOWED_METHODS
    if isinstance(error, http.RequestedRangeNotSatisfiable) and error.length is not None:
        yield "Content-Range", f"bytes */{error.length}"


def _answer(request: Request, row: ErrorRow, detail: str, headers: Headers) -> Response:
    media_type = negotiate(request.headers.get("Accept"), (HTML, JSON, TEXT), TEXT)
    headers["Content-Type"] = media_type if media_type == JSON else f"{media_type}; charset=utf-8"
    if media_type == HTML:
        page = render(request, "error.html", status=row.status, error=row.error, detail=detail)
        return streamed(page, headers, row.status)
    text = json.dumps({"error": row.error, "detail": detail}) if media_type == JSON else f"{row.error}: {detail}"
    return Response(text + "\n", status=row.status, headers=headers)
