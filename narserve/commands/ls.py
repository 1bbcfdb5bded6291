"""``nar-serve ls``: lists a store path, or a directory in it."""

from collections.abc import Iterator

import click

from narcore.formats.listing import Kind, NarListing, Node
from narserve.session.session import LocatedNode, Session, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.exits import for_each
from narserve.terminal.output import StandardOutput


@click.command(short_help="List a store path, or a directory or file in it.")
@click.argument("paths", metavar="PATH...", type=target_argument, nargs=-1, required=True)
@click.option("-l", "--long", is_flag=True, help="Show modes, sizes in bytes, and link targets.")
@click.option("-R", "--recursive", is_flag=True, help="List subdirectories recursively.")
@click.option("-d", "--directory", is_flag=True, help="List the directory itself, not its contents.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one line of JSON per PATH, in the format of a cache's .ls files."
)
@session_options
def ls(
    session: Session, paths: tuple[Target, ...], long: bool, recursive: bool, directory: bool, as_json: bool
) -> None:
    """List a store path, or a directory or file in it.

    \b
      nar-serve ls /nix/store/<hash>-hello-2.12
      nar-serve ls -lR <hash>/share
      nar-serve ls --json -R http://localhost:8383/nix/store/<hash>-hello-2.12

    The output is the same as that of nix store ls. If PATH is a link, the link itself is listed; with a slash at
    the end of PATH, the target of the link is listed instead. Names with unprintable characters are quoted on a terminal, and
    unchanged in a pipe.
    """
    out = StandardOutput()

    def show(target: Target) -> None:
        place = session.locate(target, follow=False)
        if as_json:
            _write_json(out, place, recursive=recursive)
            return
        if len(paths) > 1:
            out.line(f"{place.name}:")
        for line in _lines(out, place, long=long, recursive=recursive, directory=directory):
            out.write(line)

    for_each(paths, show)
    out.flush()


def _write_json(out: StandardOutput, place: LocatedNode, *, recursive: bool) -> None:
    for chunk in place.opened.accessor.listing.json_chunks(place.node, recursive):
        out.write(chunk)
    out.write(b"\n")


def _lines(out: StandardOutput, place: LocatedNode, *, long: bool, recursive: bool, directory: bool) -> Iterator[bytes]:
    """Yield the output lines in the format of Nix (src/nix/ls.cc)."""
    node, listing = place.node, place.opened.accessor.listing
    is_directory = node.kind is Kind.DIRECTORY
    name = "." if is_directory else place.path.rpartition("/")[2] or place.opened.store_path.base_name
    if directory or not is_directory:
        yield _line(out, node, name, long=long)
    if is_directory and (recursive or not directory):
        for child, path in _below(listing, node, name, recursive=recursive):
            yield _line(out, child, path, long=long)


def _below(listing: NarListing, node: Node, path: str, *, recursive: bool) -> Iterator[tuple[Node, str]]:
    for child in listing.children(node):
        child_path = f"{path}/{child.name}"
        yield child, child_path
        if recursive:
            yield from _below(listing, child, child_path, recursive=True)


def _line(out: StandardOutput, node: Node, path: str, *, long: bool) -> bytes:
    if not long:
        return out.name(path) + b"\n"
    target = b" -> " + out.name(node.target) if node.kind is Kind.SYMLINK else b""
    return f"{mode(node)} {node.size:20} ".encode() + out.name(path) + target + b"\n"


def mode(node: Node) -> str:
    """Return the mode that the node has in a Nix store, as ``ls -l`` shows it."""
    match node.kind:
        case Kind.DIRECTORY:
            return "dr-xr-xr-x"
        case Kind.SYMLINK:
            return "lrwxrwxrwx"
        case Kind.REGULAR:
            return "-r-xr-xr-x" if node.executable else "-r--r--r--"
