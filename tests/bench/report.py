"""Results of benchmarks: rows of a Markdown table."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

MB = 1_000_000
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. ``met`` is None if there is no goal."""

    what: str
    ours: str
    peer: str = ""
    ratio: float | None = None
    goal: str = ""
    met: bool | None = None

    def __str__(self) -> str:
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        verdict = {None: "", True: "yes", False: "**NO**"}[self.met]
        return f"| {' | '.join((self.what, self.ours, self.peer, ratio, self.goal, verdict))} |"


HEAD = "| what | nar-serve | peer | ratio | goal | met |\n|---|--:|--:|--:|--:|---|"


def against(
    what: str, ours: float, peer: float, unit: str, *, peer_name: str = "", at_least: float | None = None
) -> Row:
    """Return a row that compares two rates: ``ours`` divided by ``peer`` should be at least ``at_least``."""
    return Row(
        what,
        f"{ours:,.0f} {unit}",
        f"{peer:,.0f} {unit} {peer_name}".strip(),
        ours / peer,
        "" if at_least is None else f">= {at_least}",
        None if at_least is None else ours / peer >= at_least,
    )


def at_most(what: str, value: float, unit: str, limit: float | None = None) -> Row:
    """Return a row for a value without a peer, which should be at most ``limit``."""
    goal, met = ("", None) if limit is None else (f"<= {limit:g} {unit}", value <= limit)
    return Row(what, f"{value:,.1f} {unit}", goal=goal, met=met)


def at_least(what: str, value: float, unit: str, limit: float) -> Row:
    """Return a row for a value without a peer, which should be at least ``limit``."""
    return Row(what, f"{value:,.0f} {unit}", goal=f">= {limit:,g} {unit}", met=value >= limit)


def alternate(runs: int, *actions: Callable[[], float]) -> list[float]:
    """Run the actions in turns, ``runs`` times, and return the median result of each.

    Taking turns spreads the effects of other load on the machine over all actions.
    """
    found = [[action() for action in actions] for _ in range(runs)]
    return [median(column) for column in zip(*found, strict=True)]
