"""The response to a request for one node of a store path: a file, a page, a listing, an archive or a redirect."""

from contextlib import closing
from dataclasses import dataclass
from functools import partial

from flask import Request
from werkzeug.exceptions import NotFound

from api.handlers.store_url import StorePathUrl
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
from narcore.formats.listing import Kind, Node
from narcore.formats.resolve import Elsewhere, Found, Inside, Outcome, resolve
from narcore.formats.storepath import StorePath, split_store_path
from narcore.lookup.pathinfo import PathInfo
from narcore.nars.accessor import NarAccessor

# The largest NAR, in bytes, that is fetched only to show a README on a page.
CHEAP_NAR = 16 << 20


@dataclass(frozen=True, slots=True)
class NodeRequest:
    """A request for one node: resolves the node, then makes the response in the requested format."""

    cache: BinaryCache
    request: Request
    url: StorePathUrl
    info: PathInfo
    accessor: NarAccessor
    limit: Limit
    format: str | None  # one of FORMATS, as requested_format returns it
    highlighter: Highlighter

    @property
    def store_path(self) -> StorePath:
        return self.info.narinfo.store_path

    def outcome(self) -> Outcome:
        """Resolve the path of the URL."""
        return resolve(self.accessor.listing, self.store_path, self.url.rest, follow_last=self.format is None)

    def response(self, outcome: Outcome) -> Response:
        """Make the file, page, archive or redirect for ``outcome``.

        Raises NotFound if ``outcome`` is in a store dir that is not served.
        """
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
        """Return the kind of the response for metrics: archive, file or directory."""
        if self.format in ARCHIVES:
            return "archive"
        return "file" if self.format is None and self.is_file(outcome) else "directory"

    def _elsewhere(self, path: str, store_dir: str) -> Response:
        if store_dir != self.store_path.store_dir and not self.cache.may_have(store_dir):
            # Not a PathError: responses to path errors are cached forever, but this response changes when a store is added.
            raise NotFound(f"A symbolic link leads to {path}, but this server has no binary cache for {store_dir}.")
        if self.url.host is None:
            return redirect_response(self.request, self.url.prefix + path)
        store_path, rest = split_store_path(path, store_dir)
        return redirect_response(self.request, f"/{rest}", origin=self.url.host.origin_of(store_path.hash_part))

    def _found(self, node: Node, path: str) -> Response:
        slash = self.url.rest.endswith("/")
        if self.format in ARCHIVES:
            return archive_response(self.request, self.accessor, node, self._ref(path), self.format)
        if node.kind is Kind.DIRECTORY:
            return self._directory(node, path) if slash else redirect_response(self.request, self._at(f"{path}/"))
        if slash and (path or self.url.host is None):  # the root of a host name always has a slash
            return redirect_response(self.request, self._at(path))
        return self._leaf(node, path)

    def _leaf(self, node: Node, path: str) -> Response:
        if self.format:
            return listing_response(self.request, self.accessor.listing, node, self._ref(path))
        return self._view(node, path) if "view" in self.request.args else self._file(node, path)

    def _directory(self, node: Node, path: str) -> Response:
        if self.format or self._wants_page or prefers_json(self.request):
            return self._listing(node, path)
        try:
            index = resolve(self.accessor.listing, self.store_path, f"{path}/index.html")
        except PathError:
            return self._listing(node, path)
        if isinstance(index, Found) and index.node.kind is Kind.DIRECTORY:
            return self._listing(node, path)
        # A symbolic link becomes a redirect, so that the relative links of the target page work.
        response = self._file(index.node, index.path) if isinstance(index, Found) else self.response(index)
        response.headers["Vary"] = "Accept"
        return response

    def _view(self, node: Node, path: str) -> Response:
        read = partial(self.accessor.read, node)
        return view_response(self.request, node, self._ref(path), read, self.highlighter, prefix=self._prefix)

    def _file(self, node: Node, path: str) -> Response:
        return file_response(
            self.request,
            node,
            self._ref(path),
            partial(self.accessor.read, node),
            own_origin=self.url.host is not None,
            is_cached=self.request.method == "HEAD" and self.accessor.is_cached,
            limit=self.limit,
        )

    def _listing(self, node: Node, path: str) -> Response:
        extras = Extras(self.info if not path.strip("/") else None, self._whole_file if self._is_cheap else None)
        return listing_response(
            self.request, self.accessor.listing, node, self._ref(path), prefix=self._prefix, extras=extras
        )

    @property
    def _wants_page(self) -> bool:
        """Whether the request asks for the listing even if there is an index.html."""
        return "list" in self.request.args or "view" in self.request.args

    @property
    def _prefix(self) -> str:
        """The prefix of links to other store paths."""
        host = self.url.host
        return (host.main_origin if host else "") + script_root(self.request) + self.url.prefix

    @property
    def _is_cheap(self) -> bool:
        """Whether reading a file that was not requested, such as a README, is cheap enough."""
        return self.accessor.is_cached or self.info.narinfo.nar_size <= CHEAP_NAR

    def _whole_file(self, node: Node) -> bytes:
        with closing(self.accessor.read(node)) as content:
            return b"".join(content)

    def _ref(self, path: str) -> NodeRef:
        return NodeRef(self.info.narinfo.nar_hash.nix32, str(self.store_path), path)

    def _at(self, path: str) -> str:
        """Return the URL path of ``path`` in this store path. "" is the root; "/" is the root as a directory."""
        return self.url.at(f"/{path.lstrip('/')}" if path else "")
