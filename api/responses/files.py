"""The response for a regular file: conditions first, then ranges, then bytes."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestedRangeNotSatisfiable
from werkzeug.wrappers import Request

from api.http.conditional import Validators, range_applies
from api.http.mediatypes import SNIFF_LENGTH, type_by_content, type_by_name
from api.http.noderef import NodeRef
from api.http.ranges import ByteRange, UnsatisfiableRangeError, parse_ranges
from api.http.text import content_disposition
from api.responses.base import CONTENT_CSP, Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.body import FileWindow, MultipartBody, Read, StreamBody, open_body, read_head
from api.responses.limits import Limit
from narcore.formats.listing import Node
from narcore.sizes import CHUNK_SIZE

_NO_LIMIT = Limit()


@dataclass(frozen=True, slots=True)
class _File:
    """The regular file to send."""

    name: str
    size: int
    read: Read

    def head(self) -> bytes:
        return read_head(self.read, self.size)

    def type_by_head(self, head: bytes) -> str:
        return type_by_content(head, complete=self.size <= SNIFF_LENGTH)

    def has_head(self, part: ByteRange) -> bool:
        """Return whether ``part`` contains all bytes that determine the type. Every range of a file must have the same type."""
        return part.start == 0 and part.stop >= min(self.size, SNIFF_LENGTH)


def file_response(
    request: Request,
    node: Node,
    ref: NodeRef,
    read: Read,
    *,
    own_origin: bool = False,
    is_cached: bool = False,
    limit: Limit = _NO_LIMIT,
) -> Response:
    """Make the response to a GET or HEAD of a regular file: 200, 206 or 304.

    ``read`` is called only if bytes are needed. ``own_origin``: the store path has its own host name, so the response needs no
    sandbox. ``is_cached``: reading is cheap, so a HEAD may read the first bytes to determine the Content-Type. Raises
    PreconditionFailed (412), RequestedRangeNotSatisfiable (416), ResponseTooLarge (413), and the exceptions of ``read`` that occur
    before the first byte.
    """
    validators = ref.validators()
    headers = safe_headers(None if own_origin else CONTENT_CSP)
    cache_forever(headers)
    set_validators(headers, validators)
    unchanged = not_modified(request, validators, headers)
    if unchanged:
        return unchanged
    _describe(headers, node)
    if "download" in request.args:
        headers["Content-Disposition"] = content_disposition(ref.name)
    file = _File(ref.name, node.size, read)
    if request.method == "HEAD":
        return _head_only(headers, file, is_cached=is_cached)
    parts = _requested_parts(request, validators, node.size)
    length = sum(part.length for part in parts) if parts else node.size
    limit.check_length(request, length, partial(_with_file_name, headers, ref))
    if parts is not None and len(parts) > 1:
        return _many_parts(headers, file, parts)
    return _one_part(request, headers, file, parts[0] if parts else None)


def _with_file_name(headers: Headers, ref: NodeRef) -> Headers:
    """Add the file name to the headers, because the URL of a copy in a bucket does not end with the file name."""
    with_name = headers.copy()
    with_name.setdefault("Content-Disposition", content_disposition(ref.name, "inline"))
    return with_name


def _describe(headers: Headers, node: Node) -> None:
    headers["Accept-Ranges"] = "bytes"
    # Content-Length is not always the file size: API Gateway renames it on HEAD, and in a 206 it is the length of the part.
    headers["NAR-File-Size"] = str(node.size)
    if node.executable:
        headers["NAR-Executable"] = "1"


def _requested_parts(request: Request, validators: Validators, size: int) -> list[ByteRange] | None:
    """Return the requested ranges, or None for the whole file (RFC 9110 13.2.2 step 5, and 14.2)."""
    header = request.headers.get("Range")
    if header is None or not range_applies(request.headers, validators):
        return None
    try:
        return parse_ranges(header, size)
    except UnsatisfiableRangeError as error:
        raise RequestedRangeNotSatisfiable(length=size) from error


def _head_only(headers: Headers, file: _File, *, is_cached: bool) -> Response:
    content_type = type_by_name(file.name)
    if content_type is None and (is_cached or not file.size):
        content_type = file.type_by_head(file.head())
    if content_type is not None:
        headers["Content-Type"] = content_type
    headers["Content-Length"] = str(file.size)
    return Response(headers=headers)


def _one_part(request: Request, headers: Headers, file: _File, part: ByteRange | None) -> Response:
    """Send the whole file, or a single ``part`` of it."""
    sent = part or ByteRange(0, file.size)
    content_type = type_by_name(file.name)
    if content_type is None and not file.has_head(sent):
        content_type = file.type_by_head(file.head())
    body = open_body(file.read, sent, request.environ) if sent.length else None
    if content_type is None:
        content_type = file.type_by_head(body.peek(SNIFF_LENGTH) if body else b"")
    headers["Content-Type"] = content_type
    headers["Content-Length"] = str(sent.length)
    if part:
        headers["Content-Range"] = part.content_range(file.size)
    return _sending(request, headers, body, HTTPStatus.PARTIAL_CONTENT if part else HTTPStatus.OK)


def _sending(request: Request, headers: Headers, body: StreamBody | FileWindow | None, status: HTTPStatus) -> Response:
    if isinstance(body, FileWindow):
        # The wrapper must not be wrapped again: a server sends a file itself only for an instance of its own wrapper (PEP 3333).
        wrapped: Iterable[bytes] = request.environ["wsgi.file_wrapper"](body, CHUNK_SIZE)
        return Response(wrapped, status=status, headers=headers, direct_passthrough=True)
    return Response(body if body is not None else b"", status=status, headers=headers)


def _many_parts(headers: Headers, file: _File, parts: list[ByteRange]) -> Response:
    content_type = type_by_name(file.name) or file.type_by_head(file.head())
    body = MultipartBody(file.read, parts, file.size, content_type)
    headers["Content-Type"] = f"multipart/byteranges; boundary={body.boundary}"
    headers["Content-Length"] = str(body.length)
    return Response(body, status=HTTPStatus.PARTIAL_CONTENT, headers=headers)
