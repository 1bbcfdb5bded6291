"""The response to a request for one node of a store path: a file, a page, a listing, an archive or a redirect."""

from dataclasses import dataclass

from flask import Request
from werkzeug.exceptions import NotFound

from api.errors import error_response
from api.handlers.reads import Reads
from api.handlers.store_url import StorePathUrl
from api.http.basis import Basis
from api.http.noderef import NodeRef
from api.responses.archives import ARCHIVES, archive_response
from api.responses.base import Response
from api.responses.files import file_response
from api.responses.fileview import view_response
from api.responses.limits import Limit
from api.responses.listing import Extras, listing_response, prefers_json
from api.responses.redirects import redirect_response, script_root
from api.view.highlighter import Highlighter
from narcore.binarycache import BinaryCache
from narcore.errors import PathError
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.resolve import Elsewhere, Found, Inside, Outcome, resolve
from narcore.formats.storepath import StorePath, split_store_path
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import Located

# The largest NAR, in bytes, that is fetched only to show a README on a page.
CHEAP_NAR = 16 << 20


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """A request for one node of a store path."""

    cache: BinaryCache
    request: Request
    url: StorePathUrl
    info: PathInfo
    limit: Limit
    format: str | None  # one of FORMATS, as requested_format returns it
    highlighter: Highlighter

    @property
    def store_path(self) -> StorePath:
        return self.info.narinfo.store_path

    def locate(self) -> Located:
        """Resolve the path of the URL. Raises PathError, and the errors of ``BinaryCache.open``."""
        return self.cache.locate(self.info, self.url.rest, follow_last=self.format is None)

    def response(self, located: Located) -> Response:
        """Make the file, page, archive or redirect. Its cache lifetime depends on whether its data is verified.

        Raises NotFound if a link leads to a store dir that is not served.
        """
        reads = Reads(located.accessor)
        response = _Answer(self, reads).of(located.outcome)
        response.kind = self._kind(located.outcome)
        self.basis(is_verified=reads.seal()).apply(response.headers)
        return response

    def missing(self, error: PathError) -> Response:
        """Make the response for a path that can't be served."""
        response = error_response(self.request, error)
        self.basis(is_verified=error.is_verified).apply(response.headers)
        return response

    def basis(self, *, is_verified: bool) -> Basis:
        """Return whether the data of a response about this store path is verified, and how."""
        return Basis(self.info.trust.value if self.info.trust.is_verified else "", is_verified)

    def _kind(self, outcome: Outcome) -> str:
        """Return the kind of the response for metrics: archive, file or directory."""
        if self.format in ARCHIVES:
            return "archive"
        is_file = isinstance(outcome, Found) and outcome.node.kind is Kind.REGULAR
        return "file" if self.format is None and is_file else "directory"


@dataclass(frozen=True, slots=True)
class _Answer:
    """Chooses and makes the response to ``asked``, whose files are read through ``reads``."""

    asked: NodeRequest
    reads: Reads

    @property
    def listing(self) -> NarListing:
        return self.reads.accessor.listing

    def of(self, outcome: Outcome) -> Response:
        match outcome:
            case Elsewhere(path, store_dir):
                return self._elsewhere(path, store_dir)
            case Inside(path):
                return redirect_response(self.asked.request, self._at(path))
            case Found(node, path):
                return self._found(node, path)

    def _elsewhere(self, path: str, store_dir: str) -> Response:
        if store_dir != self.asked.store_path.store_dir and not self.asked.cache.may_have(store_dir):
            # Not a PathError: responses to path errors are cached forever, but this response changes when a store is added.
            raise NotFound(f"A symbolic link leads to {path}, but this server has no binary cache for {store_dir}.")
        if self.asked.url.host is None:
            return redirect_response(self.asked.request, self.asked.url.prefix + path)
        store_path, rest = split_store_path(path, store_dir)
        return redirect_response(
            self.asked.request, f"/{rest}", origin=self.asked.url.host.origin_of(store_path.hash_part)
        )

    def _found(self, node: Node, path: str) -> Response:
        slash = self.asked.url.rest.endswith("/")
        if self.asked.format in ARCHIVES:
            return archive_response(
                self.asked.request, self.reads.of_subtree(), node, self._ref(node, path), self.asked.format
            )
        if node.kind is Kind.DIRECTORY:
            return self._directory(node, path) if slash else redirect_response(self.asked.request, self._at(f"{path}/"))
        if slash and (path or self.asked.url.host is None):  # the root of a host name always has a slash
            return redirect_response(self.asked.request, self._at(path))
        return self._leaf(node, path)

    def _leaf(self, node: Node, path: str) -> Response:
        if self.asked.format:
            return listing_response(self.asked.request, self.listing, node, self._ref(node, path))
        return self._view(node, path) if "view" in self.asked.request.args else self._file(node, path)

    def _directory(self, node: Node, path: str) -> Response:
        if self.asked.format or self._wants_page or prefers_json(self.asked.request):
            return self._listing(node, path)
        try:
            index = resolve(self.listing, self.asked.store_path, f"{path}/index.html")
        except PathError:
            return self._listing(node, path)
        if isinstance(index, Found) and index.node.kind is Kind.DIRECTORY:
            return self._listing(node, path)
        # A symbolic link becomes a redirect, so that the relative links of the target page work.
        response = self._file(index.node, index.path) if isinstance(index, Found) else self.of(index)
        response.headers["Vary"] = "Accept"
        return response

    def _view(self, node: Node, path: str) -> Response:
        return view_response(
            self.asked.request,
            node,
            self._ref(node, path),
            self.reads.of(node),
            self.asked.highlighter,
            prefix=self._prefix,
        )

    def _file(self, node: Node, path: str) -> Response:
        if not node.size:  # reading no bytes still compares the listing with the NAR, if that is cheap
            self.reads.accessor.read(node).close()
        return file_response(
            self.asked.request,
            node,
            self._ref(node, path),
            self.reads.of(node),
            own_origin=self.asked.url.host is not None,
            is_cached=self.asked.request.method == "HEAD" and self.reads.accessor.is_cached,
            limit=self.asked.limit,
        )

    def _listing(self, node: Node, path: str) -> Response:
        extras = Extras(self.asked.info if not path.strip("/") else None, self.reads.whole if self._is_cheap else None)
        return listing_response(
            self.asked.request, self.listing, node, self._ref(node, path), prefix=self._prefix, extras=extras
        )

    @property
    def _wants_page(self) -> bool:
        """Whether the request asks for the listing even if there is an index.html."""
        return "list" in self.asked.request.args or "view" in self.asked.request.args

    @property
    def _prefix(self) -> str:
        """The prefix of links to other store paths."""
        host = self.asked.url.host
        return (host.main_origin if host else "") + script_root(self.asked.request) + self.asked.url.prefix

    @property
    def _is_cheap(self) -> bool:
        """Whether reading a file that was not requested, such as a README, is cheap enough."""
        return self.reads.accessor.is_cached or self.asked.info.narinfo.nar_size <= CHEAP_NAR

    def _ref(self, node: Node, path: str) -> NodeRef:
        used = self.listing.fingerprint(node)
        return NodeRef(self.asked.info.narinfo.nar_hash.nix32, str(self.asked.store_path), path, used)

    def _at(self, path: str) -> str:
        """Return the URL path of ``path`` in this store path. "" is the root; "/" is the root as a directory."""
        return self.asked.url.at(f"/{path.lstrip('/')}" if path else "")
