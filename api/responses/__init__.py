"""Values into responses: the only place that knows Range, ETag, Cache-Control and media types.

======================  ================================================================
files                   a regular file: conditions, ranges, bytes
listing                 a directory: HTML, or JSON for programs
view                    a regular file as a page
values                  what is known of a store path, what there is to be asked: JSON
archives                a subtree as tar, zip or NAR
formats                 what ``?format=`` can ask for
redirects, pages        a link; the landing page
templates               how our own pages and their static files are rendered and sent
base                    what all answers have in common
conditional, ranges     RFC 9110, sections 13 and 14; pure
negotiation             the Accept header; pure
mediatypes, text        Content-Type; names in URLs, headers and pages; pure
body                    bytes on their way to the WSGI server
======================  ================================================================
"""

from api.http.noderef import NodeRef
from api.http.text import display, quote_path
from api.responses.base import Response, options_response, text_response
from api.responses.files import file_response
from api.responses.formats import FORMATS, requested_format
from api.responses.listing import listing_response, prefers_json
from api.responses.pages import landing_response
from api.responses.redirects import redirect_response, script_root
from api.responses.templates import STATIC_PREFIX, static_response

__all__ = [
    "FORMATS",
    "STATIC_PREFIX",
    "NodeRef",
    "Response",
    "display",
    "file_response",
    "landing_response",
    "listing_response",
    "options_response",
    "prefers_json",
    "quote_path",
    "redirect_response",
    "requested_format",
    "script_root",
    "static_response",
    "text_response",
]
