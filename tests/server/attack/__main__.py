"""``python -m tests.server.attack``: attacks the server, prints a Markdown table, and exits with 1 if a goal is missed."""

import argparse
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from tests.bench.report import HEAD, Row
from tests.server.attack.crowd import crowd
from tests.server.attack.site import Site
from tests.server.attack.slowclients import ATTACKS, FORMS, attack
from tests.server.attack.stopping import sighup, sigterm
from tests.server.attack.stores import merging, slow_store, unresponsive_store

Proof = Callable[[Site, float], Iterator[Row]]

LOADS: Mapping[str, Proof] = {
    "crowd": crowd,
    "crowd-uncached": partial(crowd, cached_pages=False),
    "unresponsive-store": unresponsive_store,
    "slow-store": slow_store,
    "merging": merging,
    "sigterm": sigterm,
    "sighup": sighup,
}
IDLE = "idle"

EPILOG = f"""\
attacks, each in the forms {", ".join(FORMS)} (nginx: behind deploy/nginx.conf):
  idle              no attack, for comparison
  partial-heads     200 clients send half of a request head
  dripped-heads     200 clients send a request head, one byte each 3 s
  missing-bodies    200 clients send a request that announces a body, and never send the body
  silent            1,000 clients connect and send nothing
  stopped-readers   1,000 clients request a cached file of 50 MB and stop reading
  slow-readers      500 clients request this file and read 1 KB/s
  open-after-close  200 clients send Connection: close and keep their side open after the response
  all               all seven attacks at the same time

loads:
  crowd               10,000 readers of 1 KB/s of one cached file: memory, and speed of a download beside them
  crowd-uncached      the same, while the file is removed from the page cache each second
  unresponsive-store  70 clients wait for a store that is silent, in five ways: response times of cached files
  slow-store          64 clients wait for a store that answers after 1 s: all must succeed
  merging             100 clients request one path that is not cached: one request to the store
  sigterm, sighup     20 rounds of the signal under load: no resets, no cut downloads

examples:
  python -m tests.server.attack --only idle --only dripped-heads --form http/1.1 --seconds 10
  python -m tests.server.attack --only sigterm --only sighup

Every attack runs on a new server with 2 workers of 32 threads, on loopback. During an attack, /healthz and a cached file of 4 KB
are requested 50 times per second each, on new connections: 99 of 100 responses must arrive within 250 ms. Compare with the rows of
"idle", because other load on the machine slows down all responses. A process needs about 10,100 open files for "crowd": see
"ulimit -Hn". nginx is required for the form nginx.
"""


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.server.attack",
        description="Attack nar-serve serve with slow clients, unresponsive stores and signals, and print a table of what other "
        "clients notice. The exit status is 1 if a goal is missed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [IDLE, *ATTACKS, "all", *LOADS]
    parser.add_argument(
        "--only",
        action="append",
        choices=names,
        metavar="NAME",
        help="one attack or load; repeatable (default: every one)",
    )
    parser.add_argument(
        "--form", action="append", choices=list(FORMS), help="one form of the attacks; repeatable (default: every one)"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        help="duration of each measurement; the age of incomplete heads is checked above 15 s (default: %(default)g)",
    )
    parser.add_argument(
        "--dir", type=Path, help="directory for about 500 MB of files (default: the temporary directory)"
    )
    return parser.parse_args()


def _rows(site: Site, arguments: argparse.Namespace) -> Iterator[Row]:
    chosen = arguments.only or [IDLE, *ATTACKS, *LOADS]
    for form in arguments.form or FORMS:
        for name in chosen:
            if name not in LOADS:
                yield from attack(site, _attacks(name), FORMS[form], arguments.seconds)
    for name in chosen:
        if name in LOADS:
            yield from LOADS[name](site, arguments.seconds)


def _attacks(name: str) -> list[str]:
    return {IDLE: [], "all": list(ATTACKS)}.get(name, [name])


def main() -> int:
    arguments = _arguments()
    met = True
    with tempfile.TemporaryDirectory(prefix="attack-", dir=arguments.dir) as directory:
        site = Site(Path(directory))
        print(
            f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}\n\n{HEAD}",
            flush=True,
        )
        for row in _rows(site, arguments):
            print(row, flush=True)
            met = met and row.met is not False
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
