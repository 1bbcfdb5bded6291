"""``nar-serve verify``: checks the signature and the hash of store paths."""

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
    """Fetch whole store paths and check their signatures and hashes.

    \b
      nar-serve verify /nix/store/<hash>-hello-2.12
      nar-serve verify --store https://cache.example.org <hash> && echo good

    Each store path is read from its binary cache; the disk cache is neither read nor written. A PATH on a running nar-serve
    is checked against the trusted keys of this command, not those of the server. If no keys are trusted, only hash and
    size are checked. One line is printed for each good path; if any path is bad, the exit code is 1.
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
