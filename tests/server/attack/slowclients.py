"""Seven attacks by slow clients. During each, /healthz and a cached file of 4 KB must be answered in time."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tests.bench.report import Row, at_most
from tests.server.attack.attackers import Attack, Plan, Seen, attacking
from tests.server.attack.probing import Answers, probe, probe_again
from tests.server.attack.site import HEALTHZ, LARGE_FILE, SMALL_FILE, Site, probes

LIMIT_MS = 250.0  # for 99 of 100 requests
HEAD_SECONDS = 15.0  # the age at which a connection with an incomplete head must be closed
STANDING_SECONDS = 20.0  # an attack that does not stand by then is measured as it is
SMALL_BUFFER = 16 * 1024  # of a reader, so that the kernel does not receive megabytes on its behalf


@dataclass(frozen=True, slots=True)
class Form:
    """The form in which clients send requests. With ``pipelined``, attackers send a complete request before each other request."""

    version: str = "1.1"
    pipelined: bool = False
    nginx: bool = False

    def head(self, method: str, path: str, *headers: str) -> str:
        return "\r\n".join([f"{method} {path} HTTP/{self.version}", "Host: attacked.example", *headers, "", ""])

    def first(self) -> str:
        """Return a complete request that stands before every other request of a connection."""
        return self.head("GET", HEALTHZ, *(["Connection: keep-alive"] if self.version == "1.0" else []))


FORMS: Mapping[str, Form] = {
    "http/1.1": Form(),
    "http/1.0": Form(version="1.0"),
    "pipelined": Form(pipelined=True),
    "nginx": Form(nginx=True),
}


def _partial_heads(form: Form) -> Plan:
    return Plan((form.head("GET", SMALL_FILE, "X-Slow: 1")[:-2],), 200)


def _dripped_heads(form: Form) -> Plan:
    return Plan((form.head("GET", SMALL_FILE)[:10],), 200, drip=form.head("GET", SMALL_FILE)[10:])


def _missing_bodies(form: Form) -> Plan:
    framing = ["Content-Length: 1000000", "Content-Length: 10\r\nExpect: 100-continue"]
    if form.version != "1.0":
        framing.append("Transfer-Encoding: chunked")
    requests = tuple(form.head(method, SMALL_FILE, each) for method in ("GET", "HEAD", "POST") for each in framing)
    # nginx waits for the body before it passes the request on.
    return Plan(requests, 200, expect_answer=not form.nginx)


def _silent(form: Form) -> Plan:
    return Plan(("",), 1000)


def _stopped_readers(form: Form) -> Plan:
    return Plan((form.head("GET", LARGE_FILE),), 1000, rate=0, receive_buffer=SMALL_BUFFER, expect_answer=True)


def _slow_readers(form: Form) -> Plan:
    return Plan((form.head("GET", LARGE_FILE),), 500, rate=1000, receive_buffer=SMALL_BUFFER, expect_answer=True)


def _open_after_close(form: Form) -> Plan:
    return Plan((form.head("GET", SMALL_FILE, "Connection: close"),), 200, hold_seconds=3.0, expect_answer=True)


ATTACKS = {
    "partial-heads": _partial_heads,
    "dripped-heads": _dripped_heads,
    "missing-bodies": _missing_bodies,
    "silent": _silent,
    "stopped-readers": _stopped_readers,
    "slow-readers": _slow_readers,
    "open-after-close": _open_after_close,
}
HEADS = ("partial-heads", "dripped-heads")
READERS = ("stopped-readers", "slow-readers")


def plan(name: str, form: Form) -> Plan:
    """Return what the clients of the attack do. Raises KeyError if there is no such attack."""
    found = ATTACKS[name](form)
    if form.pipelined and name != "silent":
        found = replace(found, requests=tuple(form.first() + each for each in found.requests))
    return found


def attack(
    site: Site, names: list[str], form: Form, seconds: float, *, windows: int = 1, limit_ms: float = LIMIT_MS
) -> Iterator[Row]:
    """Run these attacks at the same time on a new server, and yield what other clients notice.

    99 of 100 responses to them must arrive within ``limit_ms``.

    Other load on the machine can slow down the responses of one measurement. If that misses a goal, up to ``windows - 1`` more
    follow while the attack goes on, and the last one counts.
    """
    title = f"{_title(names)}, {next(key for key, value in FORMS.items() if value == form)}"
    with ExitStack() as stack:
        port = stack.enter_context(site.server()).port
        if form.nginx:
            port = stack.enter_context(site.behind_nginx(port))
        asked = probes(form.version)
        for answers in probe(
            port, asked, 0.5
        ):  # also the listing, the narinfo and nginx's cache are warm in all workers
            assert not answers.failures, answers
        running = {name: stack.enter_context(attacking(plan(name, form), port, STANDING_SECONDS)) for name in names}
        found = probe_again(port, asked, seconds, limit_ms, windows)
        for what, answers in zip(asked, found, strict=True):
            yield _answers_row(
                f"{title}: {'file of 4 KB' if what.path == SMALL_FILE else what.path}", answers, limit_ms
            )
        for name, each in running.items():
            yield from _attackers_rows(f"{name}, {title.rpartition(', ')[2]}", name, each, seconds, form)


def _title(names: list[str]) -> str:
    return {0: "no attack", len(ATTACKS): "all attacks at once"}.get(len(names), " + ".join(names))


def _answers_row(what: str, answers: Answers, limit_ms: float) -> Row:
    return Row(what, str(answers), goal=f"p99 <= {limit_ms:g} ms", met=answers.are_within(limit_ms))


def _attackers_rows(what: str, name: str, running: Attack, seconds: float, form: Form) -> Iterator[Row]:
    count = plan(name, form).count
    seen = running.stop()
    yield Row(f"{what}: clients", _summary(running.standing, seen, count))
    if name in HEADS and not form.nginx and seconds > HEAD_SECONDS:  # nginx has its own limit: client_header_timeout
        yield at_most(f"{what}: oldest connection with an incomplete head", seen.oldest, "s", HEAD_SECONDS)
    if name in READERS:
        yield Row(
            f"{what}: readers with a response",
            f"{running.standing.answered}",
            goal=f"{count}",
            met=running.standing.standing,
        )
    if name == "slow-readers":
        yield at_most(f"{what}: readers that were cut", seen.ended + seen.reset, "", 0)


def _summary(standing: Seen, seen: Seen, count: int) -> str:
    statuses = ", ".join(f"{number} x {status}" for status, number in sorted(seen.statuses.items()))
    return (
        f"{count} {'stood' if standing.standing else '**did not stand**'} after {standing.standing_seconds:.1f} s; "
        f"opened {seen.opened}; answered {statuses or 'none'}; ended {seen.ended}; reset {seen.reset}"
    )
