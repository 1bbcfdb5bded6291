"""The size limit of one answer, checked before the answer is sent where that is possible."""

from collections.abc import Iterator
from functools import partial
from urllib.parse import quote, quote_from_bytes

from werkzeug.datastructures import Headers
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.wrappers import Request

from api.responses.base import Response
from api.responses.redirects import script_root
from narcore.concurrency.closing import close

# A body of unknown length is collected to see whether it fits, where so much may be collected. Else it is counted as it goes.
_COLLECT = 16 << 20


class AnswerTooLarge(RequestEntityTooLarge):
    """413: the platform can't carry the answer. ``description`` says what can be done instead.

    ``headers`` are those that the whole answer would have.
    """

    def __init__(self, description: str, headers: Headers) -> None:
        super().__init__(description)
        self.headers = headers


class BodyTooLarge(Exception):
    """A body that turned out too large after a part of it was sent: the connection is cut."""


class Limit:
    """At most ``size`` bytes in the body of one answer; None is no limit."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def check_length(self, request: Request, length: int, headers: Headers) -> None:
        """Raises AnswerTooLarge for a file, or the ranges of one, that would have ``length`` bytes, before any is read."""
        if self.size is not None and length > self.size:
            # The last byte is inclusive; the URL is as it was asked for, to be pasted.
            example = f"curl -r 0-{self.size - 1} '{_url(request)}'"
            raise AnswerTooLarge(
                f"This would be {length} bytes, and one answer has {self.size} at most here. "
                f"Ask for one range after the other: {example}",
                headers,
            )

    def check(self, request: Request, response: Response) -> Response:
        """The response, if it fits. Raises AnswerTooLarge, and what reading a body of unknown length raises."""
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
        raise AnswerTooLarge(
            f"This would be more than {self.size} bytes, and one answer does not have more here. "
            + ("Ask for it with ?format=json, or for a directory" if page else "Ask for a directory or a file")
            + " further down.",
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
            raise BodyTooLarge(f"a body of more than {size} bytes, which is what the platform carries")
        yield chunk


def _known_length(response: Response) -> int | None:
    if "Content-Length" in response.headers:
        return int(response.headers["Content-Length"])
    return sum(len(chunk) for chunk in response.response) if response.is_sequence else None


def _url(request: Request) -> str:
    """With nothing in it that could end the quotes it is put into, for a shell. Werkzeug gives no host for one that is none."""
    path = quote_from_bytes(request.environ.get("PATH_INFO", "").encode("latin-1"), safe="/+=?,;:@!$&()*~")
    host = quote(request.host or request.environ["SERVER_NAME"], safe=".:[]")
    return f"{request.scheme}://{host}{script_root(request)}{path}"
