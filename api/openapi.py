"""The OpenAPI 3.1 document of this server, generated from its settings and from the lists that the handlers use.

Formats come from ``responses.formats`` and ``responses.archives``, errors from the table in ``api.errors``, headers from
``responses.base``. URLs that depend on a setting are included only if that setting is on.
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

# Schemas of the JSON that this server sends (JSON Schema 2020-12).

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
            "narOffset": _SIZE | {"description": "The offset of the file's first byte in the NAR."},
        },
        "executable",
    ),
    "Directory": _object(
        {
            "type": {"const": "directory"},
            "entries": {
                "type": "object",
                "additionalProperties": {"$ref": "#/components/schemas/Node"},
                "description": "Absent below the first level unless the request has ?recursive.",
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
            "url": {"type": "string", "description": "The URL of the compressed NAR, relative to the store."},
            "downloadHash": {"type": "string", "description": "The hash of the compressed NAR."},
            "downloadSize": _SIZE | {"description": "The size of the compressed NAR in bytes."},
            "compression": {"type": "string"},
            "store": {"type": "string", "description": "The URL of the binary cache that has this store path."},
            "trusted": {"type": ["boolean", "null"], "description": "null if no trusted public keys are configured."},
            "trustedFor": {"enum": ["store", "signature", "address"]},
        },
        *("deriver", "ca", "downloadHash", "downloadSize", "trustedFor"),
    ),
}

# Query parameters and their descriptions: for files and directories, for files only, for directories only.
_BOTH = {
    "format": "Selects another representation: " + ", ".join(FORMATS) + f". {NARINFO} describes the whole store path.",
    "recursive": f"With format={LISTING}: list all levels, not only the first.",
    "view": (
        "Show the HTML page of a file, or of a directory even if it has an index.html. "
        "The value hex shows a hex dump of a file."
    ),
}
_FILE = {"download": "Send the file as an attachment.", "page": "With view: the number of the page of a long file."}
_DIRECTORY = {
    "list": "Show the listing even if the directory has an index.html.",
    "sort": "The value size sorts the HTML page by size, largest first.",
    "folders": "The value first lists directories before files on the HTML page.",
}

_HEADERS = {
    "Accept-Ranges": "Whether range requests are supported.",
    "Content-Disposition": "The file name for saving the response.",
    "Content-Length": "The length of the body in bytes.",
    "Content-Range": "The range that the body contains.",
    "ETag": "The entity tag of this representation.",
    "NAR-Executable": "1 for an executable file, else absent.",
    "NAR-File-Size": "The size of the whole file in bytes.",
    "NAR-Verified": "What was verified: signature or address; also content if the answer is verified by the NarHash.",
}
_NEVER_FOR_GET = (405,)


def document(settings: Settings, store_dirs: Sequence[str], root: str) -> Json:
    """Return the OpenAPI document. ``root`` is the prefix of every URL: SCRIPT_NAME."""
    paths: Json = {
        "/": _path(
            "landing", "The landing page.", _page(), query={"path": "The store path to open."}, errors=(400, 404)
        ),
        "/openapi.json": _path("description", "This document.", _json({"type": "object"}), errors=()),
        "/healthz": _path("health", "Liveness: whether the process responds.", _text(), errors=()),
        "/readyz": _path(
            "ready",
            "Readiness: whether a binary cache responds.",
            _text() | {"503": _response("No binary cache responds.", TEXT)},
            errors=(),
        ),
        "/robots.txt": _path("robots", "Rules for crawlers.", _text(), errors=()),
    }
    if settings.metrics:
        paths["/metrics"] = _path("metrics", "Metrics for Prometheus.", _text(), errors=())
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
    parts = ["Serves every file of every store path of a Nix binary cache. Slashes in a path need not be encoded."]
    if settings.domain:
        parts.append(f"Each store path also has its own host name: <hash>.{settings.domain}/{{path}}.")
    if settings.max_response is not None:
        parts.append(f"A response has at most {settings.max_response} bytes.")
    return " ".join(parts)


# Matches the names that formats.storepath allows. It has no lookahead, because some client and test generators don't support it.
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
    "description": "<hash>-<name> or <hash>.",
    "schema": {
        "type": "string",
        "pattern": f"^{_BASE_NAME}$",
    },
}
_PATH: Json = {
    "name": "path",
    "in": "path",
    "required": True,
    "description": "The path of a file or directory in the store path, percent-encoded. Names may contain any bytes.",
    "schema": {"type": "string", "minLength": 1},
}


def _nodes(store_dir: str, suffix: str) -> Json:
    """Return the four kinds of URLs in a store dir. A URL with a slash at the end is the URL of a directory."""
    own = f"{store_dir}/{{storePath}}"
    store_path, path = [_ref("parameters", "storePath")], [_ref("parameters", "storePath"), _ref("parameters", "path")]
    return {
        own: _node(f"storePath{suffix}", "A store path that is a file, or a redirect.", store_path, _file()),
        f"{own}/": _node(f"root{suffix}", "The root directory of a store path.", store_path, _directory(), _DIRECTORY),
        f"{own}/{{path}}": _node(f"file{suffix}", "A file, or a redirect.", path, _file()),
        f"{own}/{{path}}/": _node(f"directory{suffix}", "A directory.", path, _directory(), _DIRECTORY),
    }


def _node(
    name: str, summary: str, parameters: Sequence[Json], responses: Json, query: Mapping[str, str] = _FILE
) -> Json:
    redirect = {
        "description": "The URL leads to a symbolic link, has a wrong store path name, or has a missing or superfluous slash."
    }
    all_responses = responses | {"302": redirect, "304": {"description": _NOT_MODIFIED}}
    return _path(name, summary, all_responses, query={**_BOTH, **query}, errors=_statuses(), parameters=parameters)


def _path(
    name: str,
    summary: str,
    responses: Json,
    *,
    errors: Iterable[int],
    query: Mapping[str, str] | None = None,
    parameters: Sequence[Json] = (),
) -> Json:
    """Return a path item: GET, and HEAD, which has the same responses without a body."""
    all_parameters = [*parameters, *(_query(each, text) for each, text in (query or {}).items())]
    failures = {str(status): _ref("responses", str(status)) for status in errors if status not in _NEVER_FOR_GET}
    without_body = {
        status: {"description": response["description"]}
        for status, response in responses.items()
        if isinstance(response, dict)
    }
    return {
        "get": {
            "operationId": name,
            "summary": summary,
            "parameters": all_parameters,
            "responses": responses | failures,
        },
        "head": {
            "operationId": f"{name}Head",
            "summary": f"{summary} Headers only.",
            "parameters": all_parameters,
            "responses": without_body | {status: {"description": "Same as for GET."} for status in failures},
        },
    }


def _query(name: str, description: str) -> Json:
    parameter: Json = {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}
    if name == "format":
        return parameter | {"schema": {"enum": list(FORMATS)}}
    if name == "path":
        return parameter | {"schema": {"type": "string", "pattern": f"^(/[^/].*|{_BASE_NAME}(/.*)?)$"}}
    return parameter | {"allowEmptyValue": True}


# --- responses

_NOT_MODIFIED = "Not modified."


def _file() -> Json:
    part = {"206": {"description": "The requested ranges.", "headers": _headers(), "content": {"*/*": {}}}}
    return {"200": {"description": "The contents.", "headers": _headers(), "content": {"*/*": {}}}} | part


def _directory() -> Json:
    content: Json = {
        HTML: _STRING,
        JSON: {"schema": {"oneOf": [_ref("schemas", "Listing"), _ref("schemas", "NarInfo")]}},
    }
    content |= {archive.media_type: {} for archive in ARCHIVES.values()}
    return {
        "200": {
            "description": "The index.html of the directory, its listing, or the directory as an archive.",
            "headers": _headers(),
            "content": content,
        }
    }


_STRING: Json = {"schema": {"type": "string"}}


def _headers() -> Json:
    return {name: _ref("headers", name) for name in EXPOSED_HEADERS}


def _response(description: str, *media_types: str) -> Json:
    return {"description": description, "content": dict.fromkeys(media_types, _STRING)}


def _page() -> Json:
    return {
        "200": _response("The page.", HTML),
        "302": {"description": "Redirect to the store path."},
        "304": {"description": _NOT_MODIFIED},
    }


def _text() -> Json:
    return {"200": _response("Plain text.", TEXT)}


def _json(schema: Json) -> Json:
    return {
        "200": {"description": "JSON.", "content": {JSON: {"schema": schema}}},
        "304": {"description": _NOT_MODIFIED},
    }


def _statuses() -> list[int]:
    return sorted({row.status for row in ROWS.values()})


def _error(status: int) -> Json:
    titles = dict.fromkeys(row.error for row in ROWS.values() if row.status == status)
    content = {JSON: {"schema": _ref("schemas", "Error")}, HTML: _STRING, TEXT: _STRING}
    return {"description": "; ".join(titles) + ".", "content": content}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}
