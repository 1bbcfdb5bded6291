"""Our own HTML pages: the templates, the static files that they use, and how both are sent."""

from collections.abc import Iterator
from functools import cache
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from werkzeug.datastructures import Headers
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Request

from api.responses.base import Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.conditional import Validators, make_etag
from api.responses.redirects import script_root
from api.responses.text import display

# A store dir is an absolute path of words; none begins with a lone dash.
STATIC_PREFIX = "/-/static/"

_API = Path(__file__).parent.parent
_TEMPLATES = _API / "templates"
_STATIC = {"style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"}

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
    return StaticFile(content, sha256(content).hexdigest()[:16])


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
    static = {name.partition(".")[0]: f"{root}{STATIC_PREFIX}{name}?v={_static_file(name).version}" for name in _STATIC}
    stream = _environment().get_template(template).generate(root=root, static=static, **values)
    return _in_chunks(stream)


def _in_chunks(texts: Iterator[str]) -> Iterator[bytes]:
    """Joined to a decent size: a server sends each chunk by itself."""
    pending: list[str] = []
    size = 0
    for text in texts:
        pending.append(text)
        size += len(text)
        if size >= _CHUNK:
            yield "".join(pending).encode()
            pending, size = [], 0
    yield "".join(pending).encode()


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
