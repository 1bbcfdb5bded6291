"""Emulates Vercel's routing: finds the file or function that answers a path, according to ``vercel.json``.

The order is that of Vercel: first the files of ``public/``, then the functions of ``api/`` by their own paths, then the rewrites.
A setting that is not emulated is an error at the start, since the deployment could behave differently.
https://vercel.com/docs/project-configuration/vercel-json
"""

import ast
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeGuard
from urllib.parse import quote
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.utils import send_file

KNOWN_KEYS = {"$schema", "framework", "rewrites", "functions", "headers"}
KNOWN_FUNCTION_KEYS = {"maxDuration", "memory", "excludeFiles"}

# A .py file below api/ is a function if it defines one of these names at its top level.
WSGI_NAMES = ("app", "application")
OTHER_ENTRY_NAME = "handler"


class VercelJsonError(ValueError):
    """vercel.json, or a file that it refers to, is invalid or not supported by start-dev."""


class Function(NamedTuple):
    """A WSGI application of ``api/``: its file as named in vercel.json, and its module and attribute in Python."""

    file: str
    module: str
    attribute: str


class Rewrite(NamedTuple):
    source: re.Pattern[str]
    function: Function


class HeaderRule(NamedTuple):
    source: re.Pattern[str]
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Deployment:
    """The deployment that Vercel would make of a checkout."""

    public: Mapping[str, Path]
    functions: Mapping[str, Function]
    rewrites: tuple[Rewrite, ...]
    header_rules: tuple[HeaderRule, ...]

    @classmethod
    def read(cls, root: Path) -> Self:
        """Read the checkout at ``root``. Raises VercelJsonError, or SyntaxError if a file of ``api/`` is not valid Python."""
        config = read_config(root / "vercel.json")
        functions = find_functions(root)
        check_functions(config.get("functions", {}), functions.values())
        return cls(
            public=find_public(root / "public"),
            functions=functions,
            rewrites=tuple(parse_rewrite(entry, functions) for entry in config.get("rewrites", [])),
            header_rules=tuple(parse_header_rule(entry) for entry in config.get("headers", [])),
        )

    def route(self, path: str) -> Path | Function | None:
        """Return the file or function that answers ``path``, an undecoded path without a query, or None."""
        if (file := self.public.get(path)) is not None:
            return file
        if (function := self.functions.get(path)) is not None:
            return function
        return next((rewrite.function for rewrite in self.rewrites if rewrite.source.fullmatch(path)), None)

    def headers(self, path: str) -> list[tuple[str, str]]:
        return [header for rule in self.header_rules if rule.source.fullmatch(path) for header in rule.headers]


class Router:
    """A WSGI application that emulates a whole deployment.

    ``load`` returns the application of a function. It is called for all functions at the start, so that a broken function fails
    immediately, as a deployment would.
    """

    def __init__(self, deployment: Deployment, load: Callable[[Function], WSGIApplication]) -> None:
        self.deployment = deployment
        self.applications = {function: load(function) for function in set(deployment.functions.values())}

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        # PATH_INFO is encoded again, since REQUEST_URI may be an absolute URL, or contain any characters.
        path = quote(environ["PATH_INFO"].encode("latin-1"), safe="/!$&'()*+,;=:@~")
        extra = self.deployment.headers(path)

        def start_with_headers(
            status: str, headers: list[tuple[str, str]], *exc_info: Any
        ) -> Callable[[bytes], object]:
            # A header of the function takes precedence over one of vercel.json; no header is sent twice.
            names = {name.lower() for name, _ in headers}
            return start_response(status, headers + [pair for pair in extra if pair[0].lower() not in names], *exc_info)

        return self._application(path)(environ, start_with_headers)

    def _application(self, path: str) -> WSGIApplication:
        # As on Vercel without a framework, the function gets the requested path, not its own path.
        found = self.deployment.route(path)
        if isinstance(found, Path):
            return static_file(found)
        return NotFound() if found is None else self.applications[found]


def static_file(path: Path) -> WSGIApplication:
    """Return an application that sends a file of ``public/``, with the same Cache-Control as Vercel."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return MethodNotAllowed(["GET", "HEAD"])(environ, start_response)
        response = send_file(path, environ, conditional=True)
        del response.headers["Date"]  # the server adds it to every response
        response.headers["Cache-Control"] = "public, max-age=0, must-revalidate"
        return response(environ, start_response)

    return application


def find_public(public: Path) -> dict[str, Path]:
    """Return every file by its URL path. Looking paths up in a finite table makes ``..`` in a URL harmless."""
    files = {f"/{quote(str(path.relative_to(public)))}": path for path in sorted(public.rglob("*")) if path.is_file()}
    indexes = {url.removesuffix("index.html"): path for url, path in files.items() if path.name == "index.html"}
    return files | indexes


def find_functions(root: Path) -> dict[str, Function]:
    """Return every function of ``api/`` by each of its URL paths: with and without ``.py``, and for an index its directory."""
    functions: dict[str, Function] = {}
    for path in sorted((root / "api").rglob("*.py")):
        file = path.relative_to(root).as_posix()
        if "/_" in file or "/." in file:
            continue
        attribute = entry_point(path.read_text(encoding="utf-8"), file)
        if attribute is None:
            continue
        stem = file.removesuffix(".py")
        urls = [f"/{stem}", f"/{file}"]
        if path.name == "index.py":
            urls += [f"/{stem.removesuffix('/index')}", f"/{stem.removesuffix('index')}"]
        functions |= dict.fromkeys(urls, Function(file, stem.replace("/", "."), attribute))
    return functions


def entry_point(source: str, file: str) -> str | None:
    """Return the name in the module that Vercel would serve, or None if the module is not a function."""
    names = {name for statement in ast.parse(source, file).body for name in defined_names(statement)}
    if (found := next((name for name in WSGI_NAMES if name in names), None)) is not None:
        return found
    if OTHER_ENTRY_NAME in names:
        raise VercelJsonError(
            f"{file} defines {OTHER_ENTRY_NAME!r}, which Vercel makes a function that start-dev can't run; "
            "rename it, or give the file a name that begins with '_'"
        )
    return None


def defined_names(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return [name]
        case ast.Assign(targets=targets):
            return [target.id for target in targets if isinstance(target, ast.Name)]
        case ast.AnnAssign(target=ast.Name(id=name)):
            return [name]
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            return [alias.asname or alias.name for alias in aliases]
        case _:
            return []


def read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise VercelJsonError(f"{path.name} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise VercelJsonError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise VercelJsonError(f"{path.name} is not a JSON object")
    refuse_unknown(config, KNOWN_KEYS, path.name)
    # Without this setting, Vercel detects Flask as the framework, and passes the function a different path.
    if config.get("framework", "") is not None:
        raise VercelJsonError(f'{path.name} must contain "framework": null')
    return config


def check_functions(configured: Mapping[str, Mapping[str, object]], functions: Iterable[Function]) -> None:
    """Raises VercelJsonError if there are settings for a function that does not exist: a deployment would fail, too."""
    files = {function.file for function in functions}
    for file, settings in configured.items():
        if file not in files:
            raise VercelJsonError(f"functions: {file} is not a function: no such file, or it defines no 'app'")
        refuse_unknown(settings, KNOWN_FUNCTION_KEYS, f"functions: {file}")


def parse_rewrite(entry: Mapping[str, str], functions: Mapping[str, Function]) -> Rewrite:
    refuse_unknown(entry, {"source", "destination"}, "rewrites")
    destination = entry.get("destination", "")
    if destination not in functions:
        raise VercelJsonError(f"rewrites: destination {destination!r} is not the path of a function in api/")
    return Rewrite(parse_source(entry.get("source")), functions[destination])


def parse_header_rule(entry: Mapping[str, Any]) -> HeaderRule:
    refuse_unknown(entry, {"source", "headers"}, "headers")
    pairs = entry.get("headers", [])
    for pair in pairs:
        refuse_unknown(pair, {"key", "value"}, "headers")
    return HeaderRule(parse_source(entry.get("source")), tuple((pair["key"], pair["value"]) for pair in pairs))


def parse_source(source: object) -> re.Pattern[str]:
    """Compile a source such as ``/(.*)`` or ``/nix/(.+)``: the subset of path-to-regexp with literal text and ``(groups)``."""
    if not is_path(source):
        raise VercelJsonError(f"source {source!r} is not a path")
    pieces = re.split(r"(\((?!\?)[^()]+\))", source)
    literals = "".join(pieces[0::2])
    if not re.fullmatch(r"[\w/.~%@!$&',;=-]*", literals, re.ASCII):
        raise VercelJsonError(f"source {source!r}: start-dev only supports plain text and (regular expressions)")
    try:
        return re.compile("".join(piece if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)))
    except re.error as error:
        raise VercelJsonError(f"source {source!r}: {error}") from error


def is_path(source: object) -> TypeGuard[str]:
    return isinstance(source, str) and source.startswith("/")


def refuse_unknown(given: Mapping[str, object], known: set[str], where: str) -> None:
    if unknown := sorted(given.keys() - known):
        raise VercelJsonError(f"{where}: start-dev does not support {', '.join(map(repr, unknown))}")
