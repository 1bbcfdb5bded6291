"""Everything below a store dir: a file, a directory, a link, of a store path.

The path is taken from the raw bytes of the URL, decoded like the names in a listing (UTF-8, surrogateescape), so that a URL
reaches a name of any bytes.
"""

import re
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from flask import Request
from werkzeug.datastructures import Headers
from werkzeug.exceptions import MethodNotAllowed, NotFound

from api.handlers.timing import Timing
from api.hosts import OwnHost
from api.http.conditional import make_etag
from api.http.noderef import NodeRef
from api.offload.redirect import Offload
from api.responses.archives import ARCHIVES, archive_response
from api.responses.base import Response, options_response
from api.responses.files import file_response
from api.responses.formats import NARINFO, requested_format
from api.responses.limits import AnswerTooLarge, Limit
from api.responses.listing import Beside, listing_response, prefers_json
from api.responses.redirects import redirect_response, script_root
from api.responses.templates import MOVED, STATIC_PREFIX, page_url
from api.responses.values import json_response
from api.responses.view import view_response
from api.view.recent import RecentPaths
from narcore.binarycache import BinaryCache
from narcore.errors import CacheFailure, PathError, StorePathError
from narcore.formats.listing import Kind, Node
from narcore.formats.names import to_text
from narcore.formats.resolve import Elsewhere, Found, Inside, Outcome, resolve
from narcore.formats.storepath import DEFAULT_STORE_DIR, StorePath, is_hash_part, split_store_path
from narcore.lookup.pathinfo import PathInfo, Trust
from narcore.nars.accessor import NarAccessor

UNPACK = "/unpack"

# A store dir, and a name in it that begins with a hash part.
_STORE_PATH = re.compile(r"(?s)(/.+?)/([0-9a-z]{32}(?:-[^/]*)?)(/.*)?")
_SLASHES = re.compile("/{2,}")
_NO_LIMIT = Limit()

# A NAR of so many bytes may be fetched for the README of a page.
CHEAP_NAR = 16 << 20


@dataclass(frozen=True, slots=True)
class Asked:
    """What a URL asks for: its path is ``prefix`` + ``store_dir`` + / + ``base`` + ``rest``, or, on a host of its own, ``rest``."""

    prefix: str  # UNPACK or nothing
    store_dir: str | None  # None: whichever it is in
    base: str  # <hash>, or <hash>-<name>
    rest: str  # from the slash behind the base on, or nothing
    host: OwnHost | None = None

    @property
    def hash_part(self) -> str:
        return self.base[:32]

    def at(self, rest: str, *, base: str | None = None) -> str:
        """The path of another node of the same store path."""
        if self.host is not None:
            return rest or "/"
        return f"{self.prefix}{self.store_dir}/{base or self.base}{rest}"


@dataclass(frozen=True, slots=True)
class LargeAnswers:
    """Where answers go that the platform can't carry. They come out of a ``cache`` that gives nothing unchecked: they stay."""

    offload: Offload
    cache: BinaryCache


class StoreHandler:
    """Answers what is asked of the store paths of one binary cache."""

    def __init__(
        self,
        cache: BinaryCache,
        *,
        domain: str = "",
        limit: Limit = _NO_LIMIT,
        large: LargeAnswers | None = None,
        recent: RecentPaths | None = None,
    ) -> None:
        self._cache = cache
        self._domain = domain
        self._limit = limit
        self._large = large
        self._recent = recent or RecentPaths()

    def answer(self, request: Request) -> Response | None:
        """The answer, or None for a URL that is not below a store dir. Raises NarcoreError and HTTPException."""
        asked = self._asked(request)
        if asked is None:
            return None
        if request.method == "OPTIONS":
            return options_response()
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(["GET", "HEAD", "OPTIONS"])
        return self._answer_path(request, asked)

    def _asked(self, request: Request) -> Asked | None:
        path = _decoded_path(request)
        if path.startswith(STATIC_PREFIX):  # our pages need them on every host
            return None
        host = OwnHost.of(request, self._domain)
        if host is not None:
            return Asked("", None, host.hash_part, path, host)
        return None if request.url_rule is not None else self._asked_by_path(path)

    def _asked_by_path(self, path: str) -> Asked | None:
        prefix = UNPACK if path.startswith(f"{UNPACK}/") else ""
        path = path.removeprefix(prefix)
        match = _STORE_PATH.fullmatch(path)
        if match is None or not is_hash_part(match[2][:32]):
            dirs = {DEFAULT_STORE_DIR, *self._cache.store_dirs(ask=False)}
            if any(path.startswith(f"{each}/") and path != f"{each}/" for each in dirs):
                raise StorePathError(f"{path[:300]!r} is not a store path, nor in one")
            return None
        store_dir, base, rest = match[1], match[2], match[3] or ""
        # The usual one is let through without asking the stores what theirs is: if it is not, they won't have the path.
        if store_dir != DEFAULT_STORE_DIR and not self._cache.may_have(store_dir):
            return None
        return Asked(prefix, store_dir, base, rest)

    def _answer_path(self, request: Request, asked: Asked) -> Response:
        timing = Timing()
        with timing.of("narinfo"):
            info = self._path_info(asked)
        store_path = info.narinfo.store_path
        if asked.base not in (asked.hash_part, store_path.base_name):
            return redirect_response(request, asked.at(asked.rest, base=store_path.base_name))
        if requested_format(request) == NARINFO:
            return self._answer_narinfo(request, info, timing)
        with timing.of("listing"):
            accessor = self._cache.open(info)
        answer = _NodeAnswer(self._cache, request, asked, info, accessor, self._limit)
        outcome = answer.outcome()
        with timing.of("fetch"):
            response = self._within_limit(answer, outcome)
        self._recent.add(str(store_path))
        response.kind = answer.kind(outcome)
        response.headers["Server-Timing"] = timing.header
        if checks := _checks(
            info, content=accessor.is_cached or (accessor.is_verified and not answer.is_file(outcome))
        ):
            response.headers["NAR-Verified"] = checks
        return response

    def _answer_narinfo(self, request: Request, info: PathInfo, timing: Timing) -> Response:
        """Of the store path, whatever else the URL says: nothing of its contents is asked for."""
        response = self._limit.check(request, json_response(request, info.to_json()))
        response.headers["Server-Timing"] = timing.header
        if checks := _checks(info, content=False):
            response.headers["NAR-Verified"] = checks
        return response

    def _within_limit(self, answer: "_NodeAnswer", outcome: Outcome) -> Response:
        """The answer, or a redirect to where it is had if it is too large. Raises AnswerTooLarge."""
        try:
            return self._limit.check(answer.request, answer.of(outcome))
        except AnswerTooLarge as error:
            if self._large is None or "ETag" not in error.headers:  # without: a page that lacks what could not be read
                raise
            cache = self._large.cache
            try:
                return self._large.offload.response(
                    answer.moved_name(error.headers), error.headers, lambda: answer.whole(cache)
                )
            except CacheFailure:
                raise error from None  # it can't be cached, so it can't be checked as a whole

    def _path_info(self, asked: Asked) -> PathInfo:
        if asked.store_dir is None:
            return self._cache.path_info_anywhere(asked.hash_part)
        return self._cache.path_info(asked.hash_part, asked.store_dir)


def _checks(info: PathInfo, *, content: bool) -> str:
    """What was checked: why the narinfo is believed, and whether the answer is out of a NAR that was hashed as a whole."""
    by = [info.trust.value] if info.trust in (Trust.SIGNATURE, Trust.ADDRESS) else []
    return ", ".join([*by, "content"] if content else by)


@dataclass(frozen=True, slots=True)
class _NodeAnswer:
    """The answer for one outcome of resolving a path."""

    cache: BinaryCache
    request: Request
    asked: Asked
    info: PathInfo
    accessor: NarAccessor
    limit: Limit

    @property
    def store_path(self) -> StorePath:
        return self.info.narinfo.store_path

    def outcome(self) -> Outcome:
        """What the path leads to."""
        follow_last = requested_format(self.request) is None
        return resolve(self.accessor.listing, self.store_path, self.asked.rest, follow_last=follow_last)

    def moved_name(self, headers: Headers) -> str:
        """What the whole answer is called elsewhere: by its ETag, and a page by its own URL too, which its links lead from."""
        etag = headers["ETag"]
        page = (
            headers.get("Content-Type", "").startswith("text/html") and "NAR-File-Size" not in headers
        )  # one of ours, no file
        return (make_etag(etag, page_url(self.request)) if page else etag).strip('"')

    def whole(self, cache: BinaryCache) -> Response:
        """The answer without ranges, conditions and limit, out of ``cache``."""
        left_out = ("HTTP_RANGE", "HTTP_IF_NONE_MATCH", "HTTP_IF_MODIFIED_SINCE", "wsgi.file_wrapper")
        environ = {name: value for name, value in self.request.environ.items() if name not in left_out}
        environ[MOVED] = True
        answer = replace(self, request=Request(environ), accessor=cache.open(self.info), limit=_NO_LIMIT)
        return answer.of(answer.outcome())

    def of(self, outcome: Outcome) -> Response:
        match outcome:
            case Elsewhere(path, store_dir):
                return self._elsewhere(path, store_dir)
            case Inside(path):
                return redirect_response(self.request, self._at(path))
            case Found(node, path):
                return self._found(node, path)

    def is_file(self, outcome: Outcome) -> bool:
        return isinstance(outcome, Found) and outcome.node.kind is Kind.REGULAR

    def kind(self, outcome: Outcome) -> str:
        """What the answer is of, for metrics."""
        requested = requested_format(self.request)
        if requested in ARCHIVES:
            return "archive"
        return "file" if requested is None and self.is_file(outcome) else "directory"

    def _elsewhere(self, path: str, store_dir: str) -> Response:
        if store_dir != self.store_path.store_dir and not self.cache.may_have(store_dir):
            # No PathError: those are kept for ever, and this changes when a store is added.
            raise NotFound(f"A link here leads to {path}, and no store of {store_dir} is asked by this server.")
        if self.asked.host is None:
            return redirect_response(self.request, self.asked.prefix + path)
        there, rest = split_store_path(path, store_dir)
        return redirect_response(self.request, f"/{rest}", origin=self.asked.host.origin_of(there.hash_part))

    def _found(self, node: Node, path: str) -> Response:
        slash = self.asked.rest.endswith("/")
        archive = requested_format(self.request)
        if archive in ARCHIVES:
            return archive_response(self.request, self.accessor, node, self._ref(path), archive)
        if node.kind is Kind.DIRECTORY:
            return self._directory(node, path) if slash else redirect_response(self.request, self._at(f"{path}/"))
        if slash and (path or self.asked.host is None):  # a host name's root can't be without its slash
            return redirect_response(self.request, self._at(path))
        return self._leaf(node, path)

    def _leaf(self, node: Node, path: str) -> Response:
        if requested_format(self.request):
            return listing_response(self.request, self.accessor.listing, node, self._ref(path))
        return self._view(node, path) if "view" in self.request.args else self._file(node, path)

    def _directory(self, node: Node, path: str) -> Response:
        if requested_format(self.request) or self._wants_page or prefers_json(self.request):
            return self._listing(node, path)
        try:
            index = resolve(self.accessor.listing, self.store_path, f"{path}/index.html")
        except PathError:
            return self._listing(node, path)
        if isinstance(index, Found) and index.node.kind is Kind.DIRECTORY:
            return self._listing(node, path)
        # A link is followed by the client, so that the page's own relative links hold.
        response = self._file(index.node, index.path) if isinstance(index, Found) else self.of(index)
        response.headers["Vary"] = "Accept"
        return response

    def _view(self, node: Node, path: str) -> Response:
        return view_response(
            self.request, node, self._ref(path), partial(self.accessor.read, node), prefix=self._prefix
        )

    def _file(self, node: Node, path: str) -> Response:
        return file_response(
            self.request,
            node,
            self._ref(path),
            partial(self.accessor.read, node),
            own_origin=self.asked.host is not None,
            is_cached=self.request.method == "HEAD" and self.accessor.is_cached,
            limit=self.limit,
        )

    def _listing(self, node: Node, path: str) -> Response:
        beside = Beside(self.info if not path.strip("/") else None, self._whole_file if self._is_cheap else None)
        return listing_response(
            self.request, self.accessor.listing, node, self._ref(path), prefix=self._prefix, beside=beside
        )

    @property
    def _wants_page(self) -> bool:
        """Whether the listing is wanted, even if there is an index.html."""
        return "list" in self.request.args or "view" in self.request.args

    @property
    def _prefix(self) -> str:
        """What links to other store paths begin with."""
        host = self.asked.host
        return (host.main_origin if host else "") + script_root(self.request) + self.asked.prefix

    @property
    def _is_cheap(self) -> bool:
        """Whether a file may be read though nobody asked for it."""
        return self.accessor.is_cached or self.info.narinfo.nar_size <= CHEAP_NAR

    def _whole_file(self, node: Node) -> bytes:
        with closing(self.accessor.read(node)) as content:
            return b"".join(content)

    def _ref(self, path: str) -> NodeRef:
        return NodeRef(self.info.narinfo.nar_hash.nix32, str(self.store_path), path)

    def _at(self, path: str) -> str:
        """``path`` in this store path; "" is the root, "/" the root as a directory."""
        return self.asked.at(f"/{path.lstrip('/')}" if path else "")


def _decoded_path(request: Request) -> str:
    raw = request.environ.get("PATH_INFO", "").encode("latin-1")
    return _SLASHES.sub("/", to_text(raw))
