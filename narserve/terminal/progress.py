"""What somebody who waits is told: on standard error, and only on a terminal.

The bars are click's: one line that counts bytes is all that is needed, and rich would bring three packages along for it.
"""

import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

import click

from narcore.sizes import human_size
from narserve.terminal.exits import print_message
from narserve.terminal.output import spelled_out

Tick = Callable[[int], None]

# Below, it is done before anybody could read the bar.
WORTH_SHOWING = 1 << 20
STEPS = 500
PATIENCE_SECONDS = 4.0


@contextmanager
def progress(label: str, total: int) -> Generator[Tick]:
    """A bar for ``total`` bytes; the function says how many more have been dealt with."""
    if total < WORTH_SHOWING or not sys.stderr.isatty():
        yield lambda _count: None
        return
    done = 0

    def shown(_item: object) -> str:
        return f"{human_size(done)} of {human_size(total)}"

    with click.progressbar(
        length=total,
        label=spelled_out(label),
        file=sys.stderr,
        width=24,
        item_show_func=shown,
        update_min_steps=max(1, total // STEPS),
    ) as bar:

        def tick(count: int) -> None:
            nonlocal done
            done += count
            bar.update(count)

        yield tick


@contextmanager
def patience(whom: str) -> Generator[None]:
    """A line that says for whom we wait, if that takes long: who says nothing is given up only after half a minute."""
    if not sys.stderr.isatty():
        yield
        return
    line = threading.Timer(PATIENCE_SECONDS, print_message, [f"no answer as yet from {whom}; Ctrl-C ends the waiting"])
    line.daemon = True
    line.start()
    try:
        yield
    finally:
        line.cancel()
