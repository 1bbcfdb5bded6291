"""Directories that containers have written to are measured and removed, whatever they contain."""

import itertools
import os
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from narmount.volumes.trees import remove_tree, used_bytes


def deep(top: Path, levels: int) -> None:
    """Create a tree that is deeper than paths can be long and than Python can recurse."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir("directory", dir_fd=fd)
        (inner := os.open("directory", os.O_RDONLY, dir_fd=fd))
        os.close(fd)
        fd = inner
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


def test_a_tree_deeper_than_paths_is_removed(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    deep(tmp_path / "tree", 3000)
    assert used_bytes(tmp_path / "tree", 10)[1]
    remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path) == []


def test_a_tree_with_the_temporary_names_of_the_removal_is_removed(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for top in ("~0", "~1", "x"):
        for inner in ("~0", "~1", "~2", "y"):
            (tree / top / inner / "~0").mkdir(parents=True)
            (tree / top / inner / "~3").write_text("")
    remove_tree(tree)
    assert os.listdir(tmp_path) == []


def test_links_in_a_tree_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_bytes(bytes(1 << 20))
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "link").symlink_to(tmp_path / "outside")
    (tree / "inner/link").symlink_to("../../outside")
    (tree / "inner/broken").symlink_to("nowhere")
    os.mkfifo(tree / "inner/fifo")
    assert used_bytes(tree, 10)[0] < 1 << 19
    remove_tree(tree)
    assert os.listdir(tmp_path) == ["outside"]
    assert os.listdir(tmp_path / "outside") == ["file"]

    (tmp_path / "tree").symlink_to("outside")
    with pytest.raises(OSError, match=r"Not a directory|Too many"):
        remove_tree(tmp_path / "tree")
    assert os.listdir(tmp_path / "outside") == ["file"]


def test_names_are_not_all_read_into_memory(tmp_path: Path) -> None:
    """A container may have created more names than fit into memory."""
    tree = tmp_path / "tree"
    for directory in (tree, tree / "inner"):
        directory.mkdir()
        for number in range(1000):
            os.mknod(directory / f"{number:0250}")
    tracemalloc.start()
    remove_tree(tree)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150_000, "the names alone are 250,000 bytes"
    assert os.listdir(tmp_path) == []


def test_a_removal_that_timed_out_can_be_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        (tmp_path / f"tree/{number % 3}/{number}").mkdir(parents=True)
    monkeypatch.setattr("narmount.volumes.trees.time", SimpleNamespace(monotonic=itertools.count().__next__))
    with pytest.raises(TimeoutError):
        remove_tree(tmp_path / "tree", 0)
    assert len(list((tmp_path / "tree").rglob("*"))) == 63
    rounds = 0
    while (tmp_path / "tree").exists():
        with suppress(TimeoutError):
            remove_tree(tmp_path / "tree", 20)
        rounds += 1
    assert 5 < rounds < 20, "each round continues where the last one stopped"


def test_a_missing_directory_is_empty(tmp_path: Path) -> None:
    remove_tree(tmp_path / "tree")
    assert used_bytes(tmp_path / "tree", 1) == (0, True)


def test_measuring_stops_at_its_time_limit(tmp_path: Path) -> None:
    for number in range(2000):
        os.mknod(tmp_path / str(number))
    start = time.monotonic()
    assert used_bytes(tmp_path, 0)[1] is False
    assert time.monotonic() - start < 1
