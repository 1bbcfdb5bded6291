import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from narcore.mount import names as module
from narcore.mount.names import Names, TooManyNames

A, B, C = (f"{letter * 32}-{letter}" for letter in "abc")


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("names")
    yield fd
    os.close(fd)


def test_a_store_path_keeps_its_row_in_every_worker(fd: int) -> None:
    first = Names(fd)
    assert [first.add(A), first.add(B), first.add(A)] == [1, 2, 1]
    second = Names(fd)
    assert [second.row(A), second.row(B), second.row(C)] == [1, 2, None]
    assert second.add(C) == 3
    assert first.base_name(3) == C  # which the first has not added
    assert [first.base_name(row) for row in (1, 2, 3)] == [A, B, C]
    for row in (0, 4, -1):
        with pytest.raises(KeyError):
            first.base_name(row)


def test_another_listing_takes_another_row(fd: int) -> None:
    names = Names(fd)
    assert [names.add(A, "one"), names.add(B), names.add(A, "two"), names.add(A, "two")] == [1, 2, 3, 3]
    again = Names(fd)
    assert (again.row(A), again.digest(1), again.digest(3), again.digest(2)) == (3, "one", "two", "")
    assert [again.is_newest(row) for row in (1, 2, 3)] == [False, True, True]
    assert list(again.newest(1)) == [(2, B), (3, A)]
    assert list(again.newest(3)) == [(3, A)]


def test_a_line_that_was_never_finished_is_written_over(fd: int) -> None:
    Names(fd).add(A)
    os.pwrite(fd, B[:7].encode(), os.fstat(fd).st_size)
    names = Names(fd)
    assert len(names) == 1
    assert names.add(C) == 2
    assert Names(fd).base_name(2) == C


def test_the_table_is_bounded(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_MAX", 2)
    names = Names(fd)
    names.add(A), names.add(B)
    with pytest.raises(TooManyNames, match="more than 2"):
        names.add(C)
    assert names.add(A) == 1


PROGRAM = """
import sys
from narcore.mount.names import Names
names = Names(int(sys.argv[1]))
for number in range(200):
    names.add(f"{number:032}-x")
    names.add(f"{number:032}-{sys.argv[2]}")
"""


def test_processes_agree_on_all_rows(fd: int) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(fd), str(number)], pass_fds=[fd]) for number in range(3)
    ]
    assert [process.wait(30) for process in started] == [0, 0, 0]
    names = Names(fd)
    assert len(names) == 800
    assert len({base_name for _, base_name in names.newest(1)}) == 800
