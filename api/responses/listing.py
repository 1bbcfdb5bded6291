"""The response for a directory: a page, or JSON in the ``.ls`` format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from werkzeug.wrappers import Request

from api.http.negotiation import HTML, JSON, negotiate
from api.http.noderef import NodeRef
from api.responses.base import Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.formats import LISTING, requested_format
from api.responses.redirects import script_root
from api.responses.templates import PAGE_CSP, page_url, render, streamed, templates_version
from api.view.panel import Panel, panel_of
from api.view.readme import Readme, find_readme, readme_of
from api.view.rows import Order, Switch, breadcrumbs, exact_size, grouped, rows
from narcore.errors import NarcoreError
from narcore.formats.listing import NarListing, Node
from narcore.lookup.pathinfo import PathInfo
from narcore.sizes import human_size

# Part of the ETags: to be changed with what this module makes of a listing.
_ETAG_VERSION = "2"


def prefers_json(request: Request) -> bool:
    """Whether the Accept header asks for JSON rather than for a page."""
    return negotiate(request.headers.get("Accept"), (HTML, JSON), HTML) == JSON


@dataclass(frozen=True, slots=True)
class Beside:
    """What a page shows beside the entries: ``info`` at the root of a store path, the README if ``read`` costs little."""

    info: PathInfo | None = None
    read: Callable[[Node], bytes] | None = None


_NOTHING = Beside()


def listing_response(
    request: Request,
    listing: NarListing,
    node: Node,
    ref: NodeRef,
    *,
    prefix: str | None = None,
    beside: Beside = _NOTHING,
) -> Response:
    """The listing of ``node``: JSON for ``?format=json`` or by Accept, in full with ``?recursive``; else HTML.

    JSON there is of any node. For HTML the URL must be a directory's, with its slash. ``prefix`` (encoded) is what
    links to other store paths begin with; the default is SCRIPT_NAME.
    """
    by_format = requested_format(request) == LISTING
    if by_format or prefers_json(request):
        return _json_response(request, listing, node, ref, by_format=by_format)
    page = _Page(request, listing, node, ref, script_root(request) if prefix is None else prefix, beside)
    return page.response()


def _json_response(request: Request, listing: NarListing, node: Node, ref: NodeRef, *, by_format: bool) -> Response:
    recursive = "recursive" in request.args
    validators = ref.validators(f"json {recursive} {_ETAG_VERSION}")
    headers = safe_headers()
    cache_forever(headers)
    set_validators(headers, validators)
    if not by_format:
        headers["Vary"] = "Accept"
    unchanged = not_modified(request, validators, headers)
    if unchanged:
        return unchanged
    headers["Content-Type"] = JSON
    return streamed(listing.json_chunks(node, recursive), headers)


@dataclass(frozen=True, slots=True)
class _Page:
    """The page of one directory."""

    request: Request
    listing: NarListing
    node: Node
    ref: NodeRef
    prefix: str
    beside: Beside

    def response(self) -> Response:
        order = Order.of(self.request.args)
        readme = find_readme(self.listing, self.node) if self.beside.read is not None else None
        validators = self.ref.validators(f"html {templates_version()} {_ETAG_VERSION} {order} {self._told(readme)}")
        headers = safe_headers(PAGE_CSP)
        headers["Vary"] = "Accept"
        cache_forever(headers)
        set_validators(headers, validators)
        unchanged = not_modified(self.request, validators, headers)
        if unchanged:
            return unchanged
        headers["Content-Type"] = f"{HTML}; charset=utf-8"
        text = self._read(readme)
        if readme is not None and text is None:  # the page has less than it should: the next one may have it
            headers["Cache-Control"] = "no-store"
            del headers["Expires"], headers["ETag"], headers["Last-Modified"]
        return streamed(self._render(order, text), headers)

    def _told(self, readme: Node | None) -> str:
        """What else than the NAR decides the page."""
        info = self.beside.info
        of_path = f"{info.narinfo.to_text()} {info.store.url} {info.trust}" if info else ""
        return f"{readme is not None} {of_path}"

    def _read(self, readme: Node | None) -> Readme | None:
        """None if there is none, or if it can't be read: the listing is there all the same."""
        if readme is None or self.beside.read is None:
            return None
        try:
            return readme_of(readme.name, self.beside.read(readme))
        except NarcoreError:
            return None

    def _render(self, order: Order, readme: Readme | None) -> Iterator[bytes]:
        total = self.listing.total_size(self.node)
        return render(
            self.request,
            "listing.html",
            title=f"{self.ref.store_path}/{self.ref.path}".rstrip("/") + "/",
            store_dir=self.ref.store_dir,
            crumbs=breadcrumbs(self.ref),
            groups=grouped(rows(self.listing, order.nodes(self.listing, self.node), self.ref, self.prefix)),
            count=self.listing.count(self.node),
            total=human_size(total),
            exact_total=exact_size(total),
            order=order,
            switches=self._switches(order),
            panel=self._panel(),
            readme=readme,
        )

    def _switches(self, order: Order) -> list[Switch]:
        """Links to this page in another order."""
        by_size, folders_first = order.by_size, order.folders_first
        return [
            Switch("Largest first", self._query(order._replace(by_size=not by_size)), by_size),
            Switch("Folders first", self._query(order._replace(folders_first=not folders_first)), folders_first),
        ]

    def _query(self, order: Order) -> str:
        kept = next(
            (word for word in ("list", "view") if word in self.request.args), ""
        )  # else there may be an index.html
        query = "&".join(filter(None, [kept, order.query]))
        return f"?{query}" if query else "./"

    def _panel(self) -> Panel | None:
        info = self.beside.info
        return panel_of(info, self.prefix, page_url(self.request)) if info else None
