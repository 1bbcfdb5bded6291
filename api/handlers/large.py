"""Answers that are too large for the platform: the client is redirected to a copy in a bucket."""

from dataclasses import dataclass, replace

from flask import Request
from werkzeug.datastructures import Headers

from api.handlers.node import NodeAnswer
from api.http.conditional import make_etag
from api.offload.redirect import Offload
from api.responses.base import Response
from api.responses.limits import Limit
from api.responses.templates import MOVED, page_url
from narcore.binarycache import BinaryCache

# What would make an answer less than whole, and what the bucket's client can't use.
_LEFT_OUT = ("HTTP_RANGE", "HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "wsgi.file_wrapper")


@dataclass(frozen=True, slots=True)
class LargeAnswers:
    """Sends large answers by way of a bucket. They are read from ``cache``, which must verify all that it gives: they stay."""

    offload: Offload
    cache: BinaryCache

    def response(self, answer: NodeAnswer, headers: Headers) -> Response:
        """The redirect to the copy of ``answer``; ``headers`` are those that the answer has when it is sent directly.

        Raises OffloadError if the bucket fails, and CacheFailure if the NAR can't be cached, so that it can't be verified.
        """
        return self.offload.response(_name(answer.request, headers), headers, lambda: self._whole(answer))

    def _whole(self, answer: NodeAnswer) -> Response:
        """The answer without ranges, conditions and limit."""
        environ = {name: value for name, value in answer.request.environ.items() if name not in _LEFT_OUT}
        environ[MOVED] = True
        whole = replace(answer, request=Request(environ), accessor=self.cache.open(answer.info), limit=Limit())
        return whole.response(whole.outcome())


def _name(request: Request, headers: Headers) -> str:
    """The name in the bucket: the ETag. That of a page also depends on its own URL, which its links lead from."""
    etag = headers["ETag"]
    is_page = (
        headers.get("Content-Type", "").startswith("text/html") and "NAR-File-Size" not in headers
    )  # ours, not a file
    return (make_etag(etag, page_url(request)) if is_page else etag).strip('"')
