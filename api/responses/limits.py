"""The size limit of a response, checked before the response is sent if possible."""

from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import quote, quote_from_bytes

from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Request

from api.responses.base import Response
from api.responses.redirects import script_root
from narcore.concurrency.closing import close

# A body of unknown length is buffered to measure it, if the limit is at most this many bytes. Otherwise its bytes are counted
# while they are sent.
_COLLECT = 16 << 20


class ResponseTooLarge(RequestEntityTooLarge):
    """The response is larger than the limit (413). ``description`` tells the client what to do instead.

    ``headers`` are the headers of the whole response.
    """

    def __init__(self, description: str, headers: Headers) -> None:
        super().__init__(description)
        self.headers = headers


class BodyTooLarge(Exception):
    """A body exceeded the limit after a part of it was sent. The connection is cut."""


class Limit:
    """The maximum ``size`` of the body of one response in bytes; None means no limit."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def check_length(self, request: Request, length: int, headers: Callable[[], Headers]) -> None:
        """Raise ResponseTooLarge if ``length``, the size of a file or of its requested ranges, exceeds the limit.

        This check needs no bytes of the file. ``headers`` returns the headers of the whole response.
        """
        if self.size is not None and length > self.size:
            # A range includes its last byte. The command contains the requested URL, so that the user can paste it as it is.
            example = f"curl -r 0-{self.size - 1} '{_url(request)}'"
            raise ResponseTooLarge(
                f"The response would have {length} bytes; this server sends at most {self.size} bytes in one response. "
                f"Request the file in parts, beginning with: {example}",
                headers(),
            )

    def check(self, request: Request, response: Response) -> Response:
        """Return the response if it fits. Raises ResponseTooLarge, and the exceptions of reading a body of unknown length."""
        if self.size is None or request.method == "HEAD":
            return response
        length = _known_length(response)
        if length is None and self.size > _COLLECT:
            response.call_on_close(partial(close, response.response))
            response.response = _counted(response.iter_encoded(), self.size)
            return response
        try:
            fits = self._collect(response, self.size) if length is None else length <= self.size
        except BaseException:
            response.close()
            raise
        if fits:
            return response
        response.close()
        page = response.mimetype == "text/html"
        raise ResponseTooLarge(
            f"The response would have more than {self.size} bytes, the maximum of this server. "
            + ("Request ?format=json or a subdirectory." if page else "Request a subdirectory or a single file."),
            response.headers,
        )

    def _collect(self, response: Response, size: int) -> bool:
        chunks: list[bytes] = []
        for chunk in response.iter_encoded():
            chunks.append(chunk)
            size -= len(chunk)
            if size < 0:
                return False
        response.call_on_close(partial(close, response.response))
        response.response = chunks
        response.headers["Content-Length"] = str(sum(map(len, chunks)))
        return True


def _counted(chunks: Iterator[bytes], size: int) -> Iterator[bytes]:
    left = size
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise BodyTooLarge(f"the body exceeds the limit of {size} bytes")
        yield chunk


def _known_length(response: Response) -> int | None:
    if "Content-Length" in response.headers:
        return int(response.headers["Content-Length"])
    return sum(len(chunk) for chunk in response.response) if response.is_sequence else None


def _url(request: Request) -> str:
    """Return the requested URL without characters that would end a quoted string in a shell.

    Werkzeug returns an empty host if the Host header is invalid.
    """
    path = quote_from_bytes(request.environ.get("PATH_INFO", "").encode("latin-1"), safe="/+=?,;:@!$&()*~")
    host = quote(request.host or request.environ["SERVER_NAME"], safe=".:[]")
    return f"{request.scheme}://{host}{script_root(request)}{path}"
