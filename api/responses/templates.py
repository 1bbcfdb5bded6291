"""Renders the templates of the HTML pages, and sends them and their static files."""

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

# A store dir is an absolute path of words; none begins with a lone dash.
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

# Pages that are a pleasure with a script, and do without: it is a file of ours. What they embed is on the same host.
PAGE_CSP = f"{OWN_CSP}; script-src 'self'; media-src 'self'; frame-src 'self'; object-src 'self'"

# Set in the environ of a request whose answer will be fetched from another host.
MOVED = "nar_serve.moved"

# What a style sheet of ours names.
_CSS_URL = re.compile(r'url\("([a-z.]+)"\)')

_CHUNK = 32 * 1024
# What is built before it is sent: so much is sent with its Content-Length, which lets a client see a broken transfer.
_BUFFER = 256 * 1024


class StaticFile(NamedTuple):
    content: bytes
    version: str  # of the content; the URL carries it, so that the answer may be cached for ever


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
    """The URL of a static file, relative to the others, that stands for this very content."""
    return f"{name}?v={_static_file(name).version}"


@cache
def templates_version() -> str:
    """Changes with the templates and what they link to: a part of the ETag of what they render."""
    sources = [path.read_text() for path in sorted(_TEMPLATES.glob("*.html"))]
    return make_etag(*sources, *(_static_file(name).version for name in _STATIC)).strip('"')


def static_response(request: Request, name: str) -> Response:
    """A file below STATIC_PREFIX; for ever if the URL says which version. Raises NotFound."""
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


def render(request: Request, template: str, **values: object) -> Iterator[bytes]:
    """The page, in chunks: a long one is never whole in memory."""
    root = script_root(request)
    # A page that is put elsewhere has to say where its links lead from, and what its own headers would have said.
    base = page_url(request) if request.environ.get(MOVED) else ""
    values |= {"base": base, "origin": f"{request.scheme}://{request.host}"}
    static = {name.partition(".")[0]: f"{root}{STATIC_PREFIX}{_versioned(name)}" for name in _STATIC}
    stream = _environment().get_template(template).generate(root=root, static=static, **values)
    return joined((text.encode() for text in stream), _CHUNK)


def page_url(request: Request) -> str:
    """Where the request was sent to, whole but for the query: for people to copy."""
    path = quote_from_bytes(request.environ.get("PATH_INFO", "").encode("latin-1"), safe="/")
    return f"{request.scheme}://{request.host}{script_root(request)}{path}"


def streamed(chunks: Iterator[bytes], headers: Headers, status: int = 200) -> Response:
    """A body made on the fly: with Content-Length if it is short, else as it comes."""
    ready: list[bytes] = []
    size = 0
    for chunk in chunks:
        ready.append(chunk)
        size += len(chunk)
        if size > _BUFFER:
            return Response(chain(ready, chunks), status=status, headers=headers)
    return Response(ready, status=status, headers=headers)
