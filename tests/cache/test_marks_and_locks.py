"""Marks of verified files, and locks on files."""

import os
from pathlib import Path

import pytest

from narcore.cache.layout import DURABLE, THIS_BOOT, is_verified, mark
from narcore.cache.locks import is_still_at, locked, remove_if_free, replacing, try_lock


class TestMarks:
    @pytest.mark.parametrize("seconds", [DURABLE, THIS_BOOT])
    def test_mark_is_lost_when_the_file_is_written_to(self, seconds: int, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"x")
        assert not is_verified(path.stat())
        os.utime(path, (1000, 2000))
        with path.open("r+b") as file:
            mark(file.fileno(), seconds)
            assert is_verified(path.stat())
            assert path.stat().st_atime == 1000
            file.write(b"y")
            file.flush()
            assert not is_verified(path.stat())

    def test_mark_of_another_boot_is_not_valid(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.touch()
        for seconds in (THIS_BOOT + 1, DURABLE + 1, 0):
            os.utime(path, (0, seconds))
            assert not is_verified(path.stat())
        os.utime(path, ns=(0, DURABLE * 10**9 + 1))
        assert not is_verified(path.stat())


class TestLocks:
    def test_lock_is_exclusive_and_released_and_moved_files_are_detected(self, tmp_path: Path) -> None:
        path = tmp_path / "lock"
        with locked(path), path.open("rb") as other:
            assert not try_lock(other.fileno())
            assert is_still_at(other.fileno(), path)
            path.rename(tmp_path / "moved")
            assert not is_still_at(other.fileno(), path)
            path.touch()
            assert not is_still_at(other.fileno(), path)
        with (tmp_path / "moved").open("rb") as other:
            assert try_lock(other.fileno())

    def test_file_is_replaced_completely_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "x"
        path.write_bytes(b"old")

        def fail() -> None:
            with replacing(path) as fd:
                os.write(fd, b"half")
                (new,) = set(tmp_path.iterdir()) - {path}
                assert remove_if_free(new) == []  # its writer is alive
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"old", [path])
        with replacing(path) as fd:
            os.write(fd, b"new")
        assert (path.read_bytes(), list(tmp_path.iterdir())) == (b"new", [path])

    def test_two_files_are_removed_together_or_not_at_all(self, tmp_path: Path) -> None:
        one, two = tmp_path / "1", tmp_path / "2"
        two.touch()
        with locked(one):
            assert remove_if_free(two, also=one) == []
        assert remove_if_free(two, also=one) == [two, one]
        assert remove_if_free(two, also=one) == []
