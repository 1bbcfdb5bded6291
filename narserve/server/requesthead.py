"""Detects the end of the head of a request, and parses the head with gunicorn's parser. Does no I/O.

In gunicorn, the parser reads from a socket. Here, it gets a head that is complete or invalid, so it never waits.
"""

import re
from dataclasses import dataclass

from gunicorn.config import Config
from gunicorn.http.errors import LimitRequestHeaders, NoMoreData, ParseException
from gunicorn.http.message import Request
from gunicorn.http.unreader import IterUnreader

MAX_HEAD = 64 * 1024  # for the whole head: eight times the limit of nginx and Apache for one line
# The largest limit that gunicorn allows: paths in a NAR can be long, and percent-encoding triples their length.
MAX_REQUEST_LINE = 8190

# The maximum size of a request body that is received and discarded, so that the connection can be used for the next request. For a
# larger body, a new connection costs less than receiving the body.
MAX_DRAINED = 64 * 1024

# If a head contains a line feed without a carriage return (RFC 9112 2.2), gunicorn refuses it in any case. Therefore the server
# does not wait for the rest of such a head.
_END = re.compile(rb"\r\n\r\n|(?<!\r)\n")

Address = tuple[str, int]


def can_be_parsed(received: bytearray, before: int) -> bool:
    """Return whether the head is complete, or already invalid. ``before`` is how many bytes an earlier call has checked."""
    return (
        len(received) > MAX_HEAD
        or _END.search(received, max(0, before - 3)) is not None
        or (before <= MAX_REQUEST_LINE + 2 < len(received) and b"\n" not in received)
    )


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """A request whose head was received.

    ``rest``: the bytes that were received after this request; they are the beginning of the next request. ``body_left``: how many
    bytes of the body must still be received and discarded, or None if the connection must be closed instead.
    """

    request: Request
    rest: bytes
    body_left: int | None

    @classmethod
    def parse(cls, received: bytes, config: Config, client: Address) -> "ReceivedRequest":
        """Parse a head, and all bytes after it. Raises ParseException, of gunicorn, if it is invalid."""
        unreader = IterUnreader(iter((received,)))
        try:
            request = Request(config, unreader, client)
        except (NoMoreData, StopIteration) as error:
            raise LimitRequestHeaders("limit request head size") from error
        fields = dict(request.headers)
        if "TRANSFER-ENCODING" in fields:
            return cls(request, *_after_chunks(request, unreader))
        after = unreader.take_buffered()
        length = int(fields.get("CONTENT-LENGTH", 0))
        left = max(0, length - len(after))
        # A client that waits for "100 Continue" gets the response instead, and may or may not send the body after it.
        must_close = left > MAX_DRAINED or (left and "EXPECT" in fields)
        return cls(request, after[length:], None if must_close else left)


def _after_chunks(request: Request, unreader: IterUnreader) -> tuple[bytes, int | None]:
    """Discard a chunked body. If it was not received completely, or is invalid, the connection must be closed."""
    body = request.body
    try:
        while body is not None and body.read(MAX_HEAD):
            pass
    except (NoMoreData, ParseException):
        return b"", None
    return unreader.take_buffered(), 0
