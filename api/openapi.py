"""The OpenAPI 3.1 document of this server, generated for its settings from the lists that the handlers use.

Formats come from ``responses.formats`` and ``responses.archives``, errors from the table in ``api.errors``, headers from
``responses.base``; what there is only with some settings is there only with them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from api.errors import ROWS
from api.http.negotiation import HTML, JSON, TEXT
from api.responses.archives import ARCHIVES
from api.responses.base import EXPOSED_HEADERS
from api.responses.formats import FORMATS, LISTING, NARINFO
from narcore.formats.nixbase32 import ALPHABET
from narcore.formats.storepath import HASH_PART_LENGTH, NAME_MAX
from narcore.settings import Settings
from narcore.version import __version__

Json = dict[str, Any]

# The JSON that this server sends (JSON Schema 2020-12).

_SIZE = {"type": "integer", "minimum": 0}
_STRINGS = {"type": "array", "items": {"type": "string"}}


def _object(properties: dict[str, object], *optional: str) -> dict[str, object]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


SCHEMAS: dict[str, object] = {
    "Error": _object({"error": {"type": "string"}, "detail": {"type": "string"}}),
    "Listing": _object({"version": {"const": 1}, "root": {"$ref": "#/components/schemas/Node"}}),
    "Node": {"oneOf": [{"$ref": f"#/components/schemas/{kind}"} for kind in ("Regular", "Directory", "Symlink")]},
    "Regular": _object(
        {
            "type": {"const": "regular"},
            "size": _SIZE,
            "executable": {"type": "boolean"},
            "narOffset": _SIZE | {"description": "Where its bytes begin in the NAR."},
        },
        "executable",
    ),
    "Directory": _object(
        {
            "type": {"const": "directory"},
            "entries": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Node"},
                "description": "Left out below the first level, unless all levels are asked for.",
            },
        },
        "entries",
    ),
    "Symlink": _object({"type": {"const": "symlink"}, "target": {"type": "string"}}),
    "NarInfo": _object(
        {
            "path": {"type": "string", "description": "The store path."},
            "narHash": {"type": "string"},
            "narSize": _SIZE,
            "references": _STRINGS,
            "deriver": {"type": "string"},
            "ca": {"type": "string"},
            "signatures": _STRINGS,
            "url": {"type": "string", "description": "Of the compressed NAR, relative to the store."},
            "downloadHash": {"type": "string", "description": "Of the compressed NAR."},
            "downloadSize": _SIZE,
            "compression": {"type": "string"},
            "store": {"type": "string", "description": "The URL of the binary cache that it is from."},
            "trusted": {"type": ["boolean", "null"], "description": "null: there are no keys to tell by."},
            "trustedFor": {"enum": ["store", "signature", "address"]},
        },
        *("deriver", "ca", "downloadHash", "downloadSize", "trustedFor"),
    ),
}

# Parameters of the query, and what they mean: of a file, of a directory, of both.
_BOTH = {
    "format": "The node in another form: " + ", ".join(FORMATS) + f". {NARINFO} is of the whole store path.",
    "recursive": f"With {LISTING}: everything below, and not only one level.",
    "view": "The page of a file, or of a directory also where there is an index.html; hex: of a file's bytes.",
}
_FILE = {"download": "As an attachment.", "page": "With view: which part of a long file."}
_DIRECTORY = {
    "list": "The listing, also where there is an index.html.",
    "sort": "size: the largest first, on the page.",
    "folders": "first: directories before files, on the page.",
}

_HEADERS = {
    "Accept-Ranges": "Whether the answer can be had in parts.",
    "Content-Disposition": "The name to save it under.",
    "Content-Length": "Of the body.",
    "Content-Range": "Which part this is.",
    "ETag": "Of the contents and the form.",
    "NAR-Executable": "1 for an executable, else absent.",
    "NAR-File-Size": "The size of the whole file.",
    "NAR-Verified": "What was checked: signature or address, and content once the whole NAR was hashed.",
}
_NOT_OF_A_GET = (405,)


def document(settings: Settings, store_dirs: Sequence[str], root: str) -> Json:
    """``root`` is what every URL begins with: SCRIPT_NAME."""
    paths: Json = {
        "/": _path(
            "landing", "The landing page.", _page(), query={"path": "A store path to go to."}, errors=(400, 404)
        ),
        "/openapi.json": _path("description", "This document.", _json({"type": "object"}), errors=()),
        "/healthz": _path("health", "Whether the process lives.", _text(), errors=()),
        "/readyz": _path(
            "ready", "Whether a cache answers.", _text() | {"503": _answer("None does.", TEXT)}, errors=()
        ),
        "/robots.txt": _path("robots", "For crawlers.", _text(), errors=()),
    }
    if settings.metrics:
        paths["/metrics"] = _path("metrics", "For Prometheus.", _text(), errors=())
    for number, store_dir in enumerate(store_dirs):
        paths |= _nodes(store_dir, f"Of{number or ''}")
        paths |= _nodes(f"/unpack{store_dir}", f"Unpacked{number or ''}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "nar-serve", "version": __version__, "description": _description(settings)},
        "servers": [{"url": root or "/"}],
        "paths": paths,
        "components": {
            "schemas": SCHEMAS,
            "parameters": {"storePath": STORE_PATH, "path": _PATH},
            "headers": {name: {"description": text, "schema": {"type": "string"}} for name, text in _HEADERS.items()},
            "responses": {str(status): _error(status) for status in _statuses()},
        },
    }


def _description(settings: Settings) -> str:
    parts = [
        "Every file of every store path of a Nix binary cache. A path may hold slashes, which need not be encoded."
    ]
    if settings.domain:
        parts.append(f"A store path has a host name of its own as well: <hash>.{settings.domain}/{{path}}.")
    if settings.max_response is not None:
        parts.append(f"One answer has {settings.max_response} bytes at most.")
    return " ".join(parts)


# The same names as formats.storepath allows; without a lookahead, for generators of clients and of tests.
_ALNUM = "0-9A-Za-z+_?="
_NAME = "|".join(
    (
        f"[{_ALNUM}-][{_ALNUM}.-]{{0,{NAME_MAX - 1}}}",
        f"[.][{_ALNUM}][{_ALNUM}.-]{{0,{NAME_MAX - 2}}}",
        f"[.][.][{_ALNUM}.][{_ALNUM}.-]{{0,{NAME_MAX - 3}}}",
    )
)
_BASE_NAME = f"[{ALPHABET}]{{{HASH_PART_LENGTH}}}(-({_NAME}))?"
STORE_PATH: Json = {
    "name": "storePath",
    "in": "path",
    "required": True,
    "description": "<hash>-<name>, or just <hash>.",
    "schema": {
        "type": "string",
        "pattern": f"^{_BASE_NAME}$",
    },
}
_PATH: Json = {
    "name": "path",
    "in": "path",
    "required": True,
    "description": "What is in it. Names of any bytes, percent-encoded.",
    "schema": {"type": "string", "minLength": 1},
}


def _nodes(store_dir: str, suffix: str) -> Json:
    """The four kinds of URLs in a store dir; those with a slash at the end are of directories."""
    own = f"{store_dir}/{{storePath}}"
    store_path, path = [_ref("parameters", "storePath")], [_ref("parameters", "storePath"), _ref("parameters", "path")]
    return {
        own: _node(f"storePath{suffix}", "A store path that is a file, or a redirect.", store_path, _file()),
        f"{own}/": _node(f"root{suffix}", "The directory that a store path is.", store_path, _directory(), _DIRECTORY),
        f"{own}/{{path}}": _node(f"file{suffix}", "A file, or a redirect.", path, _file()),
        f"{own}/{{path}}/": _node(f"directory{suffix}", "A directory.", path, _directory(), _DIRECTORY),
    }


def _node(name: str, summary: str, parameters: Sequence[Json], answers: Json, query: Mapping[str, str] = _FILE) -> Json:
    redirect = {"description": "The node is elsewhere: a link, another name, a missing or superfluous slash."}
    conditional = {"description": "The client has it."}
    found = answers | {"302": redirect, "304": conditional}
    return _path(name, summary, found, query={**_BOTH, **query}, errors=_statuses(), parameters=parameters)


def _path(
    name: str,
    summary: str,
    answers: Json,
    *,
    errors: Iterable[int],
    query: Mapping[str, str] | None = None,
    parameters: Sequence[Json] = (),
) -> Json:
    """A path item: GET, and HEAD, which answers the same without the body."""
    asked = [*parameters, *(_query(each, text) for each, text in (query or {}).items())]
    failures = {str(status): _ref("responses", str(status)) for status in errors if status not in _NOT_OF_A_GET}
    heads = {
        status: {"description": answer["description"]} for status, answer in answers.items() if isinstance(answer, dict)
    }
    return {
        "get": {"operationId": name, "summary": summary, "parameters": asked, "responses": answers | failures},
        "head": {
            "operationId": f"{name}Head",
            "summary": f"{summary} Only the headers.",
            "parameters": asked,
            "responses": heads | {status: {"description": "As of a GET."} for status in failures},
        },
    }


def _query(name: str, description: str) -> Json:
    parameter: Json = {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}
    if name == "format":
        return parameter | {"schema": {"enum": list(FORMATS)}}
    if name == "path":
        return parameter | {"schema": {"type": "string", "pattern": f"^(/[^/].*|{_BASE_NAME}(/.*)?)$"}}
    return parameter | {"allowEmptyValue": True}


# --- answers


def _file() -> Json:
    part = {"206": {"description": "The parts that Range asks for.", "headers": _headers(), "content": {"*/*": {}}}}
    return {"200": {"description": "The bytes.", "headers": _headers(), "content": {"*/*": {}}}} | part


def _directory() -> Json:
    content: Json = {
        HTML: _STRING,
        JSON: {"schema": {"oneOf": [_ref("schemas", "Listing"), _ref("schemas", "NarInfo")]}},
    }
    content |= {archive.media_type: {} for archive in ARCHIVES.values()}
    return {
        "200": {
            "description": "Its index.html, its listing, or it as an archive.",
            "headers": _headers(),
            "content": content,
        }
    }


_STRING: Json = {"schema": {"type": "string"}}


def _headers() -> Json:
    return {name: _ref("headers", name) for name in EXPOSED_HEADERS}


def _answer(description: str, *media_types: str) -> Json:
    return {"description": description, "content": dict.fromkeys(media_types, _STRING)}


def _page() -> Json:
    return {
        "200": _answer("The page.", HTML),
        "302": {"description": "To the store path."},
        "304": {"description": "As it was."},
    }


def _text() -> Json:
    return {"200": _answer("Some lines.", TEXT)}


def _json(schema: Json) -> Json:
    return {
        "200": {"description": "JSON.", "content": {JSON: {"schema": schema}}},
        "304": {"description": "As it was."},
    }


def _statuses() -> list[int]:
    return sorted({row.status for row in ROWS.values()})


def _error(status: int) -> Json:
    titles = dict.fromkeys(row.error for row in ROWS.values() if row.status == status)
    content = {JSON: {"schema": _ref("schemas", "Error")}, HTML: _STRING, TEXT: _STRING}
    return {"description": "; ".join(titles) + ".", "content": content}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
