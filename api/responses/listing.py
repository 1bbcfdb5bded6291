"""A directory as an answer: a page for people, or the ``.ls`` format for programs."""

from collections.abc import Iterator
from typing import NamedTuple

from werkzeug.wrappers import Request

from api.responses.base import NodeRef, Response, cache_forever, not_modified, safe_headers, set_validators
from api.responses.formats import LISTING, requested_format
from api.responses.negotiation import HTML, JSON, negotiate
from api.responses.redirects import script_root
from api.responses.templates import render, streamed, templates_version
from api.responses.text import human_size, quote_path
from narcore.formats.listing import Kind, NarListing, Node
from narcore.formats.storepath import is_base_name

# Part of the ETags: to be changed with what this module makes of a listing.
_VERSION = "1"


class Link(NamedTuple):
    label: str
    href: str


class Row(NamedTuple):
    """A line of the page. Names are raw: the template spells them out and escapes them."""

    name: str
    href: str
    kind: str
    executable: bool
    size: str
    exact_size: str
    target: str
    target_href: str


def prefers_json(request: Request) -> bool:
    """Whether the Accept header asks for JSON rather than for a page."""
    return negotiate(request.headers.get("Accept"), (HTML, JSON), HTML) == JSON


def listing_response(
    request: Request, listing: NarListing, node: Node, ref: NodeRef, *, prefix: str | None = None
) -> Response:
    """The listing of ``node``: JSON for ``?format=json`` or by Accept, in full with ``?recursive``; else HTML.

    JSON there is of any node. For HTML the URL must be a directory's, with its slash. ``prefix`` (encoded) is what
    links to other store paths begin with; the default is SCRIPT_NAME.
    """
    by_format = requested_format(request) == LISTING
    as_json = by_format or prefers_json(request)
    recursive = as_json and "recursive" in request.args
    representation = f"json {recursive}" if as_json else f"html {templates_version()}"
    validators = ref.validators(f"{representation} {_VERSION}")
    headers = safe_headers()
    cache_forever(headers)
    set_validators(headers, validators)
    if not by_format:
        headers["Vary"] = "Accept"
    unchanged = not_modified(request, validators, headers)
    if unchanged:
        return unchanged
    headers["Content-Type"] = JSON if as_json else f"{HTML}; charset=utf-8"
    if as_json:
        return streamed(listing.json_chunks(node, recursive), headers)
    return streamed(_page(request, listing, node, ref, script_root(request) if prefix is None else prefix), headers)


def _page(request: Request, listing: NarListing, node: Node, ref: NodeRef, prefix: str) -> Iterator[bytes]:
    return render(
        request,
        "listing.html",
        title=f"{ref.store_path}/{ref.path}".rstrip("/") + "/",
        store_dir=ref.store_dir,
        crumbs=breadcrumbs(ref),
        rows=rows(listing, node, ref, prefix),
    )


def breadcrumbs(ref: NodeRef) -> list[Link]:
    """The store path and each directory down to this one, as relative links, which hold under any prefix and host."""
    names = [ref.store_path.rpartition("/")[2], *filter(None, ref.path.split("/"))]
    return [Link(name, "../" * (len(names) - 1 - depth) or "./") for depth, name in enumerate(names)]


def rows(listing: NarListing, node: Node, ref: NodeRef, prefix: str) -> Iterator[Row]:
    """One Row an entry, in the listing's order, made when it is asked for. ``prefix`` comes before absolute targets."""
    for child in listing.children(node):
        # "./": without it, a name with a colon could pass for a scheme.
        href = "./" + quote_path(child.name)
        if child.kind is Kind.DIRECTORY:
            yield Row(child.name, href + "/", "directory", False, "", "", "", "")
        elif child.kind is Kind.SYMLINK:
            target_href = _target_href(child, ref, href, prefix)
            yield Row(child.name, href, "symlink", False, "", "", child.target, target_href)
        else:
            exact = f"{child.size:,} byte{'' if child.size == 1 else 's'}"
            yield Row(child.name, href, "regular", child.executable, human_size(child.size), exact, "", "")


def _target_href(link: Node, ref: NodeRef, href: str, prefix: str) -> str:
    """Where the target's own text leads, or "" if that is out of the store.

    Where the text alone can't tell (``..`` behind a name that may itself be a link; a way out of this store path, or store dir), it
    is ``href``, the link itself: the server follows it.
    """
    steps = [step for step in link.target.split("/") if step not in ("", ".")]
    ups = next((index for index, step in enumerate(steps) if step != ".."), len(steps))
    path = "/".join(steps)
    if link.target.startswith("/"):
        inside = f"/{path}".startswith(f"{ref.store_dir}/") and ".." not in steps
        if inside:
            return f"{prefix}/{quote_path(path)}"
        return href if any(map(is_base_name, steps)) else ""  # perhaps into another store dir
    depth = ref.path.count("/") + 1 if ref.path else 0
    return href if ups > depth or ".." in steps[ups:] else f"./{quote_path(path)}"
