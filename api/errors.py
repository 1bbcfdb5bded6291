"""The table of errors (status, text and caching for each exception), and the error response made from it.

The client gets a title and a next step. It also gets the message of the exception if the row sets ``shows_message``. A row sets
``shows_message`` only if the message is about the request, not about a store, a disk or a key. The caller of ``error_response``
logs the exception.
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

from api.http.basis import PAGE
from api.http.negotiation import HTML, JSON, TEXT, negotiate
from api.http.text import display
from api.responses.base import ALLOWED_METHODS, Response, cache_forever
from api.responses.templates import page_headers, render, streamed
from narcore import errors

_MESSAGE_LIMIT = 1000


class Caching(Enum):
    """How long an HTTP cache may store the error response."""

    NEVER = "no-store"
    SHORT = "public, max-age=60"
    FOREVER = "immutable"


class ErrorRow(NamedTuple):
    """The response to one class of exceptions.

    ``error`` is the title. ``advice`` is the next step; with ``shows_message``, the message of the exception precedes it.
    """

    status: int
    error: str
    advice: str
    shows_message: bool = False
    caching: Caching = Caching.NEVER


_LATER = "Try again later."
_REPAIR = "The binary cache needs to be repaired; the server log has the details."

_NO_NODE = ErrorRow(
    404,
    "Not found",
    "To list a directory, open its URL with a slash at the end.",
    shows_message=True,
    caching=Caching.FOREVER,
)
_BAD_DATA = ErrorRow(502, "The binary cache sent malformed data", f"The data does not follow its format. {_REPAIR}")
_BAD_HASH = ErrorRow(502, "The binary cache sent wrong data", f"The data does not match its hash or size. {_REPAIR}")
_BAD_STREAM = ErrorRow(502, "The archive can't be unpacked", f"It is damaged or truncated. {_REPAIR}")
_UNAVAILABLE = ErrorRow(
    502, "The binary cache is unavailable", f"It can't be reached, or it responds with errors. {_LATER}"
)
_BUSY = ErrorRow(503, "The server is busy", "It has no free capacity for this request. Try again in a moment.")
_FAULT = ErrorRow(500, "Internal server error", "The server log has the details.")

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
        "A store path is a store directory, followed by a hash of 32 characters and usually a dash and a name.",
        shows_message=True,
        caching=Caching.SHORT,
    ),
    errors.IntegrityError: _BAD_HASH,
    errors.HashMismatch: _BAD_HASH,
    errors.SizeMismatch: _BAD_HASH,
    errors.UntrustedSignature: ErrorRow(
        502,
        "Not signed by a trusted key",
        "The store path has no signature by one of this server's trusted public keys.",
    ),
    errors.CompressionError: _BAD_STREAM,
    errors.TruncatedStream: _BAD_STREAM,
    errors.CorruptStream: _BAD_STREAM,
    errors.UnknownCompression: ErrorRow(
        502, "The archive can't be unpacked", "This server does not support its compression."
    ),
    errors.StoreError: _UNAVAILABLE,
    errors.FileNotInStore: ErrorRow(
        404, "No such store path", "None of the configured binary caches has it. Check the hash.", caching=Caching.SHORT
    ),
    errors.StoreForbidden: ErrorRow(
        502,
        "The binary cache denied access",
        "This server has no permission to read it. The permissions need to be fixed; the server log has the details.",
    ),
    errors.RangeNotSupported: _UNAVAILABLE,
    errors.StoreUnavailable: _UNAVAILABLE,
    errors.StoreUnresponsive: ErrorRow(
        503, "The binary cache does not respond", "Other requests already wait for it. Try again in a moment."
    ),
    errors.StoreTimeout: ErrorRow(504, "The binary cache timed out", _LATER),
    errors.StoresUnavailable: ErrorRow(
        502, "Some caches are unavailable", f"The caches that could be reached don't have this store path. {_LATER}"
    ),
    errors.StoresTimeout: ErrorRow(
        504, "Some caches timed out", f"The other caches don't have this store path. {_LATER}"
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
        413,
        "Too large for this server",
        "This server is configured to unpack smaller archives only.",
        caching=Caching.SHORT,
    ),
    errors.SettingsError: _FAULT,
    http.BadRequest: ErrorRow(400, "Bad request", "Correct the URL and try again.", caching=Caching.SHORT),
    http.NotFound: ErrorRow(
        404, "Not found", "This server only serves store paths of its binary caches.", caching=Caching.SHORT
    ),
    http.MethodNotAllowed: ErrorRow(
        405, "Method not allowed", f"This server supports these methods only: {ALLOWED_METHODS}."
    ),
    http.RequestEntityTooLarge: ErrorRow(413, "Too large for one response", "", caching=Caching.SHORT),
    http.PreconditionFailed: ErrorRow(
        412, "Precondition failed", "The current version does not match If-Match or If-Unmodified-Since."
    ),
    errors.WriteError: ErrorRow(
        502, "Large files are unavailable", f"The bucket to which this server copies them is unavailable. {_LATER}"
    ),
    http.RequestedRangeNotSatisfiable: ErrorRow(
        416,
        "Range not satisfiable",
        "No range begins inside the file, there are too many ranges, or too many of them overlap.",
    ),
    Exception: _FAULT,
}


def error_response(request: Request, error: Exception) -> Response:
    """Make the response for any exception: JSON, HTML or one line of text, depending on Accept."""
    row = _row_for(error)
    headers = page_headers(request)
    headers["Vary"] = "Accept"
    if row.caching is Caching.FOREVER:
        cache_forever(headers)
    else:
        headers["Cache-Control"] = row.caching.value
    for name, value in _special_headers(error):
        headers[name] = value
    return _response(request, row, f"{_message(error, row)} {row.advice}".strip(), headers)


def _row_for(error: Exception) -> ErrorRow:
    """Return the row for the class of ``error``, or for its nearest base class that has a row.

    An HTTPException without a row keeps its status and gets the standard title of that status.
    """
    row = next(ROWS[base] for base in type(error).__mro__ if base in ROWS)
    if row is _FAULT and isinstance(error, HTTPException) and error.code:
        return ErrorRow(error.code, HTTP_STATUS_CODES.get(error.code, "Error"), "")
    return row


def _message(error: Exception, row: ErrorRow) -> str:
    """Return the message of the exception as complete sentences, or "" if the message is not meant for the client."""
    if isinstance(error, HTTPException):
        # A description that was passed to the constructor is written for the client. The default description is Werkzeug's, and is
        # left out if the row has advice.
        is_custom = error.description != type(error).description or not row.advice
        text = (error.description or "") if is_custom else ""
    else:
        text = str(error) if row.shows_message else ""
    text = display(text[:_MESSAGE_LIMIT])
    return text if not text or text.endswith((".", "?", "!")) else f"{text}."


def _special_headers(error: Exception) -> Iterable[tuple[str, str]]:
    if isinstance(error, errors.CapacityError | errors.StoreUnresponsive):
        yield "Retry-After", str(error.retry_after)
    if isinstance(error, http.MethodNotAllowed):
        yield "Allow", ", ".join(error.valid_methods or ()) or ALLOWED_METHODS
    if isinstance(error, http.RequestedRangeNotSatisfiable) and error.length is not None:
        yield "Content-Range", f"bytes */{error.length}"


def _response(request: Request, row: ErrorRow, detail: str, headers: Headers) -> Response:
    media_type = negotiate(request.headers.get("Accept"), (HTML, JSON, TEXT), TEXT)
    headers["Content-Type"] = media_type if media_type == JSON else f"{media_type}; charset=utf-8"
    if media_type == HTML:
        if row.caching is Caching.FOREVER:
            headers["Cache-Control"] = PAGE
            del headers["Expires"]
        page = render(request, "error.html", status=row.status, error=row.error, detail=detail)
        return streamed(page, headers, row.status)
    text = json.dumps({"error": row.error, "detail": detail}) if media_type == JSON else f"{row.error}: {detail}"
    return Response(text + "\n", status=row.status, headers=headers)
