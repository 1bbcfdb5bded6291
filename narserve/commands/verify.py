"""``nar-serve verify``"""

import click

from narcore.concurrency.closing import close
from narserve.session.session import Session, session_options
from narserve.session.target import Target, target_argument
from narserve.terminal.exits import for_each
from narserve.terminal.output import StandardOutput
from narserve.terminal.progress import progress


@click.command(short_help="Check signatures and hashes of whole store paths.")
@click.argument("paths", metavar="PATH...", type=target_argument, nargs=-1, required=True)
@session_options
def verify(session: Session, paths: tuple[Target, ...]) -> None:
    """Fetch store paths whole, and check their signatures and hashes.

    \b
      nar-serve verify /nix/store/<hash>-hello-2.12
      nar-serve verify --store https://cache.example.org <hash> && echo good

    Each is read from its cache, whatever is kept on disk here; nothing is written. An instance's URL does as well: what it says
    and sends is checked by the keys that are trusted here. Without trusted keys only hash and size
    are checked. A line is printed for each that is good; if any is not, the exit code is 1.
    """
    out = StandardOutput()

    def check(target: Target) -> None:
        info = session.path_info(target)
        narinfo = info.narinfo
        chunks = session.nar(target)
        try:
            with progress(narinfo.store_path.name, narinfo.nar_size) as tick:
                for chunk in chunks:
                    tick(len(chunk))
        finally:
            close(chunks)
        out.line(f"{narinfo.store_path}: {info.trust.explanation.check}, hash good")
        out.flush()

    for_each(paths, check)
