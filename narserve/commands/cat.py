"""``nar-serve cat``: writes files to standard output."""

from contextlib import closing

import click

from narcore.errors import NoSuchNode
from narcore.formats.listing import Kind
from narserve.session.session import Session, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.exits import for_each
from narserve.terminal.output import StandardOutput


@click.command(short_help="Write files to standard output.")
@click.argument("paths", metavar="PATH...", type=target_argument, nargs=-1, required=True)
@session_options
def cat(session: Session, paths: tuple[Target, ...]) -> None:
    """Write files to standard output, one after another.

    \b
      nar-serve cat /nix/store/<hash>-hello-2.12/share/doc/README
      nar-serve cat <hash>/bin/hello | file -

    Links are followed, including links into other store paths.
    """
    out = StandardOutput()

    def show(target: Target) -> None:
        place = session.locate(target, follow=True)
        if place.node.kind is not Kind.REGULAR:
            raise NoSuchNode(f"{place.name} is a {place.node.kind}, not a file")
        with closing(place.opened.accessor.read(place.node)) as chunks:
            for chunk in chunks:
                out.write(chunk)

    for_each(paths, show)
    out.flush()
