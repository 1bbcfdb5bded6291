"""Errors of fills that are stored on disk."""

import os
from pathlib import Path

import pytest

from narcore import errors
from narcore.cache import failures


class TestFailures:
    ALL = sorted(
        (
            value
            for value in vars(errors).values()
            if isinstance(value, type) and issubclass(value, errors.NarcoreError)
        ),
        key=lambda value: value.__name__,
    )

    @pytest.mark.parametrize("kind", ALL)
    def test_every_kind_of_error_can_be_stored_and_read(self, kind: type[errors.NarcoreError], tmp_path: Path) -> None:
        failures.remember(tmp_path / "e", kind("what – was wrong"))
        found = failures.recall(tmp_path / "e")
        assert type(found) is kind
        assert str(found) == "what – was wrong"
        assert [path.name for path in tmp_path.iterdir()] == ["e"]

    def test_error_is_valid_for_seconds(self, tmp_path: Path) -> None:
        path = tmp_path / "e"
        failures.remember(path, errors.StoreTimeout("slow"))
        for age, remembered in ((0.0, True), (failures.SECONDS - 1, True), (failures.SECONDS + 1, False), (-60, False)):
            now = path.stat().st_mtime
            os.utime(path, (now - age, now - age))
            assert (failures.recall(path) is not None) == remembered
            os.utime(path)

    @pytest.mark.parametrize("note", [b"", b"\xff", b"[]", b'"x"', b'{"error":"OSError","message":""}', b'{"error":1}'])
    def test_invalid_or_missing_file_is_ignored(self, note: bytes, tmp_path: Path) -> None:
        (tmp_path / "e").write_bytes(note)
        assert failures.recall(tmp_path / "e") is None
        assert failures.recall(tmp_path / "none") is None

    def test_write_errors_are_ignored(self, tmp_path: Path) -> None:
        failures.remember(tmp_path / "missing" / "e", errors.StoreTimeout("slow"))
