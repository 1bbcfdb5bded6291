"""Responses that are too large for the platform: the client is redirected to a copy in a bucket."""

from dataclasses import dataclass, replace

from flask import Request
from werkzeug.datastructures import Headers

from api.handlers.node import NodeRequest
from api.http.conditional import make_etag
from api.offload.redirect import Offload
from api.responses.base import Response
from api.responses.limits import Limit
from api.responses.templates import MOVED, page_url
from narcore.binarycache import BinaryCache

# Keys of the environ that are left out when a copy is made. The headers would make the response partial or empty. With
# wsgi.file_wrapper, the body would be a file for the WSGI server to send, instead of chunks to upload.
_OMITTED = ("HTTP_RANGE", "HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "wsgi.file_wrapper")


@dataclass(frozen=True, slots=True)
class LargeResponses:
    """Serves large responses from a bucket.

    The contents are read from ``cache``, which must verify all bytes that it returns, because the copies are permanent.
    """

    offload: Offload
    cache: BinaryCache

    def response(self, node_request: NodeRequest, headers: Headers) -> Response:
        """Redirect to the copy of the response to ``node_request``.

        ``headers`` are the headers that the response would have if it were sent directly.

        Raises WriteError if the bucket fails, and CacheFailure if the NAR can't be cached and therefore can't be verified.
        """
        return self.offload.response(_name(node_request.request, headers), headers, lambda: self._whole(node_request))

    def _whole(self, node_request: NodeRequest) -> Response:
        """Make the whole response, without ranges, conditions and limit."""
        environ = {name: value for name, value in node_request.request.environ.items() if name not in _OMITTED}
        environ[MOVED] = True
        whole = replace(node_request, request=Request(environ), cache=self.cache, limit=Limit())
        return whole.response(whole.locate())


def _name(request: Request, headers: Headers) -> str:
    """Return the name of the copy in the bucket: the ETag.

    The copy of a generated page contains its own URL as the base of its links, so its name also depends on that URL.
    """
    etag = headers["ETag"]
    # An HTML file of a store path has NAR-File-Size; a generated page does not.
    is_page = headers.get("Content-Type", "").startswith("text/html") and "NAR-File-Size" not in headers
    return (make_etag(etag, page_url(request)) if is_page else etag).strip('"')
