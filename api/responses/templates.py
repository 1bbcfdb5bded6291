"""Renders the templates of HTML pages, and sends the pages and their static files."""

import re
from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote_from_bytes

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from werkzeug.datastructures import Headers
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Request

from api.http.conditional import Validators, make_etag
from api.http.text import display
from api.responses.base import OWN_CSP, Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.body import joined
from api.responses.redirects import script_root

# No store dir begins with this prefix, because no component of a store dir is a single dash.
STATIC_PREFIX = "/-/static/"

_API = Path(__file__).parent.parent
_TEMPLATES = _API / "templates"
_SVG = "image/svg+xml"
_STATIC = {
    "style.css": "text/css; charset=utf-8",
    "script.js": "text/javascript; charset=utf-8",
    "icon.svg": _SVG,
    "folder.svg": _SVG,
    "file.svg": _SVG,
    "program.svg": _SVG,
    "link.svg": _SVG,
}

# The policy of pages that contain the script of this server. The pages also work without the script. All files that a page embeds
# are on the host of the page.
PAGE_CSP = f"{OWN_CSP}; script-src 'self'; media-src 'self'; frame-src 'self'; object-src 'self'"

# If a request is for the host name of a store path, its environ has this key. The value is the main host name and port, which serve
# all store paths. Pages load their static files from the main host, since every URL on the host of a store path is in that path.
SITE = "nar_serve.site"

# The environ of a request has this key if a bucket, which is another host, will serve the response.
MOVED = "nar_serve.moved"

# A static file that a style sheet refers to.
_CSS_URL = re.compile(r'url\("([a-z.]+)"\)')

_CHUNK = 32 * 1024
# A page of up to this size is built completely and sent with Content-Length, so that a client notices a truncated transfer.
_BUFFER = 256 * 1024


class StaticFile(NamedTuple):
    """A static file. ``version`` is a hash of the content; the URL contains it, so that the file may be cached forever."""

    content: bytes
    version: str


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["display"] = display
    return environment


@cache
def _static_file(name: str) -> StaticFile:
    content = (_API / "static" / name).read_bytes()
    if name.endswith(".css"):
        content = _CSS_URL.sub(lambda url: f'url("{_versioned(url[1])}")', content.decode()).encode()
    return StaticFile(content, sha256(content).hexdigest()[:16])


def _versioned(name: str) -> str:
    """Return the URL of a static file with its version, relative to the other static files."""
    return f"{name}?v={_static_file(name).version}"


@cache
def templates_version() -> str:
    """Return a hash of the templates and of the static files. It is part of the ETag of each page."""
    sources = [path.read_text() for path in sorted(_TEMPLATES.glob("*.html"))]
    return make_etag(*sources, *(_static_file(name).version for name in _STATIC)).strip('"')


def static_response(request: Request, name: str) -> Response:
    """Send a static file. It may be cached forever if the URL has the current version. Raises NotFound for an unknown name."""
    if name not in _STATIC:
        raise NotFound
    file = _static_file(name)
    headers = safe_headers()
    headers["Content-Type"] = _STATIC[name]
    if request.args.get("v") == file.version:
        cache_forever(headers)
    else:
        headers["Cache-Control"] = "no-cache"
    validators = Validators(f'"{file.version}"')
    set_validators(headers, validators)
    return not_modified(request, validators, headers) or Response(file.content, headers=headers)


def page_headers(request: Request, csp: str = OWN_CSP) -> Headers:
    """Return the headers of a page of this server. The policy ``csp`` allows the page's static files."""
    site = request.environ.get(SITE)
    return safe_headers(csp.replace("'self'", f"'self' {site}") if site else csp)


def render(request: Request, template: str, **values: object) -> Iterator[bytes]:
    """Render a page in chunks, so that a long page is never completely in memory."""
    site = request.environ.get(SITE)
    root = f"//{site}{script_root(request)}" if site else script_root(request)
    # A copy on another host needs a base URL for its links, and a policy in the page, since its headers are lost.
    base = page_url(request) if request.environ.get(MOVED) else ""
    values |= {
        "base": base,
        "origins": " ".join(f"{request.scheme}://{host}" for host in (request.host, site) if host),
    }
    static = {name.partition(".")[0]: f"{root}{STATIC_PREFIX}{_versioned(name)}" for name in _STATIC}
    stream = _environment().get_template(template).generate(root=root, static=static, **values)
    return joined((text.encode() for text in stream), _CHUNK)


def page_url(request: Request) -> str:
    """Return the absolute URL of the request without its query, for users to copy."""
    path = quote_from_bytes(request.environ.get("PATH_INFO", "").encode("latin-1"), safe="/")
    return f"{request.scheme}://{request.host}{script_root(request)}{path}"


def streamed(chunks: Iterator[bytes], headers: Headers, status: int = 200) -> Response:
    """Make a response from generated chunks: with Content-Length if the body is short, else streamed."""
    ready: list[bytes] = []
    size = 0
    for chunk in chunks:
        ready.append(chunk)
        size += len(chunk)
        if size > _BUFFER:
            return Response(chain(ready, chunks), status=status, headers=headers)
    return Response(ready, status=status, headers=headers)
