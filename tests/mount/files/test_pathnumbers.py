import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from narmount.files import pathnumbers as module
from narmount.files.pathnumbers import PathNumbers, TooManyPaths

A, B, C = (f"{letter * 32}-{letter}" for letter in "abc")


@pytest.fixture
def fd() -> Iterator[int]:
    fd = os.memfd_create("names")
    yield fd
    os.close(fd)


def test_a_store_path_keeps_its_row_in_every_worker(fd: int) -> None:
    first = PathNumbers(fd)
    assert [first.add(A, "a", "{}"), first.add(B, "b", '{"x": 1}'), first.add(A, "a", "other")] == [1, 2, 1]
    second = PathNumbers(fd)
    assert [second.row(A), second.row(B), second.row(C)] == [1, 2, None]
    assert second.add(C, "c", "") == 3
    assert first.base_name(3) == C  # added by the second
    for names in (first, second):
        assert [names.base_name(row) for row in (1, 2, 3)] == [A, B, C]
        assert [names.record(row) for row in (1, 2, 3)] == ["{}", '{"x": 1}', ""]
    for row in (0, 4, -1):
        for ask in (first.base_name, first.record, first.identity, first.is_newest):
            with pytest.raises(KeyError):
                ask(row)


def test_another_identity_takes_another_row(fd: int) -> None:
    names = PathNumbers(fd)
    added = [names.add(A, "one", "1"), names.add(B, "b", ""), names.add(A, "two", "2"), names.add(A, "two", "2")]
    assert added == [1, 2, 3, 3]
    again = PathNumbers(fd)
    assert (again.row(A), again.identity(1), again.identity(3), again.identity(2)) == (3, "one", "two", "b")
    assert [again.record(row) for row in (1, 2, 3)] == ["1", "", "2"]
    assert [again.is_newest(row) for row in (1, 2, 3)] == [False, True, True]
    assert list(again.newest(1)) == [(2, B), (3, A)]
    assert list(again.newest(3)) == [(3, A)]


def test_an_incomplete_line_is_overwritten(fd: int) -> None:
    PathNumbers(fd).add(A, "a", "")
    os.pwrite(fd, B[:7].encode(), os.fstat(fd).st_size)
    names = PathNumbers(fd)
    assert len(names) == 1
    assert names.add(C, "c", "") == 2
    assert PathNumbers(fd).base_name(2) == C


def test_the_number_of_rows_is_limited(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS_MAX", 2)
    names = PathNumbers(fd)
    names.add(A, "a", ""), names.add(B, "b", "")
    with pytest.raises(TooManyPaths, match="more than 2"):
        names.add(C, "c", "")
    assert names.add(A, "a", "") == 1


PROGRAM = """
import sys
from narmount.files.pathnumbers import PathNumbers
names = PathNumbers(int(sys.argv[1]))
for number in range(200):
    names.add(f"{number:032}-x", "x", "{}")
    names.add(f"{number:032}-{sys.argv[2]}", "y", "{}")
"""


def test_processes_agree_on_all_rows(fd: int) -> None:
    started = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(fd), str(number)], pass_fds=[fd]) for number in range(3)
    ]
    assert [process.wait(30) for process in started] == [0, 0, 0]
    names = PathNumbers(fd)
    assert len(names) == 800
    assert len({base_name for _, base_name in names.newest(1)}) == 800
