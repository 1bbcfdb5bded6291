"""The response for a directory: a page, or JSON in the ``.ls`` format."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from werkzeug.wrappers import Request

from api.http.basis import NO_STORE, PAGE
from api.http.negotiation import HTML, JSON, negotiate
from api.http.noderef import NodeRef
from api.responses.base import Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.formats import LISTING, requested_format
from api.responses.redirects import script_root
from api.responses.templates import PAGE_CSP, page_headers, page_url, render, streamed, templates_version
from api.view.panel import Panel, panel_of
from api.view.readme import Readme, find_readme, readme_of
from api.view.rows import Order, Switch, breadcrumbs, exact_size, grouped, rows
from narcore.errors import NarcoreError
from narcore.formats.listing import NarListing, Node
from narcore.lookup.pathinfo import PathInfo
from narcore.sizes import human_size

# Part of the ETags. Increase it when this module makes another page or JSON from the same listing.
_ETAG_VERSION = "2"


def prefers_json(request: Request) -> bool:
    """Return whether the Accept header prefers JSON to HTML."""
    return negotiate(request.headers.get("Accept"), (HTML, JSON), HTML) == JSON


@dataclass(frozen=True, slots=True)
class Extras:
    """Sources of those parts of a page that are not the entries.

    ``info`` fills the panel at the root of a store path. ``read`` reads the README; it is None if reading is not cheap. A page
    that lacks the README of its directory is not cached, so that the cached page is the same for everyone.
    """

    info: PathInfo | None = None
    read: Callable[[Node], bytes] | None = None


_NO_EXTRAS = Extras()


def listing_response(
    request: Request,
    listing: NarListing,
    node: Node,
    ref: NodeRef,
    *,
    prefix: str | None = None,
    extras: Extras = _NO_EXTRAS,
) -> Response:
    """Make the listing of ``node``: JSON for ``?format=json`` or if Accept prefers it, otherwise HTML.

    The JSON has all levels for ``?recursive``. Any node has a JSON listing. For HTML, the node must be a directory and the URL
    must end with a slash. ``prefix`` is the percent-encoded prefix of links to other store paths; the default is SCRIPT_NAME.
    """
    by_format = requested_format(request) == LISTING
    if by_format or prefers_json(request):
        return _json_response(request, listing, node, ref, by_format=by_format)
    page = _Page(request, listing, node, ref, script_root(request) if prefix is None else prefix, extras)
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
    extras: Extras

    def response(self) -> Response:
        order = Order.of(self.request.args)
        readme = find_readme(self.listing, self.node)
        version = f"html {templates_version()} {_ETAG_VERSION}"
        validators = self.ref.validators(f"{version} {order} {self._panel_version}")
        headers = page_headers(self.request, PAGE_CSP)
        headers["Vary"] = "Accept"
        headers["Cache-Control"] = PAGE
        set_validators(headers, validators)
        unchanged = not_modified(self.request, validators, headers)
        if unchanged:
            return unchanged
        headers["Content-Type"] = f"{HTML}; charset=utf-8"
        text = self._read(readme)
        # If the README could not be read, the next request may be able to read it, so the page is not cached.
        if readme is not None and text is None:
            headers["Cache-Control"] = NO_STORE
            del headers["ETag"], headers["Last-Modified"]
        return streamed(self._render(order, text), headers)

    @property
    def _panel_version(self) -> str:
        """All values that determine the page and are not in the NAR. They are part of the ETag."""
        info = self.extras.info
        return f"{info.narinfo.to_text()} {info.store.url} {info.trust}" if info else ""

    def _read(self, readme: Node | None) -> Readme | None:
        """Return the README, or None if there is none or it can't be read. The page then shows only the listing."""
        if readme is None or self.extras.read is None:
            return None
        try:
            return readme_of(readme.name, self.extras.read(readme))
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
        """Return links to this page in another order."""
        by_size, folders_first = order.by_size, order.folders_first
        return [
            Switch("Largest first", self._query(order._replace(by_size=not by_size)), by_size),
            Switch("Folders first", self._query(order._replace(folders_first=not folders_first)), folders_first),
        ]

    def _query(self, order: Order) -> str:
        # Without list or view, the link would show the index.html of the directory, if it has one.
        current = next((word for word in ("list", "view") if word in self.request.args), "")
        query = "&".join(filter(None, [current, order.query]))
        return f"?{query}" if query else "./"

    def _panel(self) -> Panel | None:
        info = self.extras.info
        return panel_of(info, self.prefix, page_url(self.request)) if info else None
