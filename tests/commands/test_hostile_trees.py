"""``get`` never writes outside the destination, whatever the NAR contains, and whatever already exists on disk."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pytest

from narcore.errors import IntegrityError, NarError
from narcore.formats.narinfo import NarInfo
from narserve.get.staging import ROOT, destination
from narserve.get.treewriter import TreeWriter
from tests.builders import COMPRESS, Tree, binary_cache, hash_part, link, nar_info, store_path
from tests.commands.running import InProcess, stored
from tests.formats.nar_samples import directory, entry, regular, root, symlink

EVIL = regular(b"evil")
HASH = hash_part("x")


def hostile_nars(outside: bytes) -> dict[str, bytes]:
    """Return NARs that make a careless program write outside its directory."""
    return {
        "up": directory(entry(b"..", directory(entry(b"f", EVIL)))),
        "up in a name": directory(entry(b"../f", EVIL)),
        "absolute": directory(entry(outside + b"/f", EVIL)),
        "slash": directory(entry(b"a/f", EVIL)),
        "dot": directory(entry(b".", directory(entry(b"f", EVIL)))),
        "no name": directory(entry(b"", EVIL)),
        "nul": directory(entry(b"f\0g", EVIL)),
        "link, then a directory of that name": directory(
            entry(b"a", symlink(outside)), entry(b"a", directory(entry(b"f", EVIL)))
        ),
        "link, then a file of that name": directory(entry(b"a", symlink(outside + b"/f")), entry(b"a", EVIL)),
        "behind a file": directory(entry(b"b", EVIL), entry(b"a", EVIL)),
    }


def cache_of(archive: bytes) -> dict[str, bytes]:
    """Return a binary cache that is valid except for the contents of the NAR. Its listing is that of a harmless tree."""
    info: NarInfo = nar_info(store_path("x"), archive)
    return {
        info.url: COMPRESS["zstd"](archive),
        f"{HASH}.narinfo": info.to_text().encode(),
        f"{HASH}.ls": binary_cache({"x": {"f": b"evil"}})[f"{HASH}.ls"],
    }


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory outside the destination. Checks at the end that nothing was written to it, or beside the destination."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "original").write_bytes(b"original")
    yield path
    assert [child.name for child in path.iterdir()] == ["original"]
    assert (path / "original").read_bytes() == b"original"
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("cache_dir", ["on", "off"])
@pytest.mark.parametrize("kind", hostile_nars(b"/"))
def test_hostile_nars_are_refused(cli: InProcess, tmp_path: Path, outside: Path, kind: str, cache_dir: str) -> None:
    archive = root(hostile_nars(os.fsencode(outside))[kind])
    cli.use(stored(tmp_path / "store", cache_of(archive)), **({"NAR_CACHE_DIR": "off"} if cache_dir == "off" else {}))
    done = cli("get", HASH)
    assert (done.code, done.out, os.listdir()) == (1, b"", [])
    assert len(done.err.splitlines()) == 1


def test_links_are_copied_and_not_followed(cli: InProcess, tmp_path: Path, outside: Path) -> None:
    tree: dict[str, Tree] = {
        "a": link(os.fsencode(outside)),
        "b": link("../../../outside"),
        "c": {"up": link("..")},
        "z": b"z",
    }
    cli.use(stored(tmp_path / "store", binary_cache({"x": tree})))
    cli.ok("get", HASH)
    assert [os.readlink(Path("x") / name) for name in "ab"] == [str(outside), "../../../outside"]  # noqa: PTH115


# --- hostile data in the staging directory


TREE: dict[str, Tree] = {"d": {"f": b"of the tree"}, "e": b"of the tree, too", "l": link("d")}


@pytest.fixture
def staging(cli: InProcess, tmp_path: Path) -> Path:
    """The staging directory of an interrupted ``get`` of the store path x, whose NAR was truncated. It is complete by now."""
    files = binary_cache({"x": TREE})
    [url] = [name for name in files if name.startswith("nar/")]
    cli.use(stored(tmp_path / "store", files | {url: files[url][:-10]}), NAR_CACHE_DIR="off")
    assert cli("get", HASH).code == 1
    stored(tmp_path / "store", files)
    [name] = os.listdir()
    assert stat.S_IMODE(Path(name).stat().st_mode) == 0o700
    return Path(name)


def test_planted_links_are_replaced(cli: InProcess, staging: Path, outside: Path) -> None:
    top = staging / "root"
    (top / "d").mkdir(parents=True, exist_ok=True)
    for name in ("d/f", "e", "l"):
        (top / name).unlink(missing_ok=True)
        (top / name).symlink_to(outside / "original")
    cli.ok("get", HASH)
    assert (Path("x/d/f").read_bytes(), Path("x/e").read_bytes()) == (b"of the tree", b"of the tree, too")
    assert not Path("x/e").is_symlink()
    assert os.readlink("x/l") == "d"  # noqa: PTH115


def test_a_planted_hard_link_is_not_written_through(cli: InProcess, staging: Path, outside: Path) -> None:
    (staging / "root").mkdir(exist_ok=True)
    (staging / "root/e").unlink(missing_ok=True)
    (staging / "root/e").hardlink_to(outside / "original")
    cli.ok("get", HASH)
    assert Path("x/e").read_bytes() == b"of the tree, too"


@pytest.mark.parametrize("is_cached", [True, False])
def test_planted_contents_are_replaced(cli: InProcess, staging: Path, tmp_path: Path, is_cached: bool) -> None:
    """The staging directory holds a file of the right size with wrong bytes, and another with a wrong beginning."""
    cli.use(NAR_CACHE_DIR=str(tmp_path / "nars") if is_cached else "off")
    if is_cached:
        cli.ok("cat", f"{HASH}/e")
    (staging / "root/d").mkdir(parents=True, exist_ok=True)
    (staging / "root/e").write_bytes(b"of another tree!")
    (staging / "root/d/f").write_bytes(b"of a")
    cli.ok("get", HASH)
    assert (Path("x/d/f").read_bytes(), Path("x/e").read_bytes()) == (b"of the tree", b"of the tree, too")


@pytest.mark.parametrize("place", ["root", "root/d"])
def test_a_planted_link_to_a_directory_is_an_error(cli: InProcess, staging: Path, outside: Path, place: str) -> None:
    shutil.rmtree(staging / place, ignore_errors=True)
    (staging / place).parent.mkdir(exist_ok=True)
    (staging / place).symlink_to(outside)
    done = cli("get", HASH)
    assert (done.code, done.out) == (3, b"")
    assert os.listdir() == [staging.name]


def test_a_staging_directory_that_others_can_write_to_is_refused(cli: InProcess, staging: Path, outside: Path) -> None:
    staging.chmod(0o777)
    done = cli("get", HASH)
    assert (done.code, "other users can write to it" in done.err) == (3, True)
    shutil.rmtree(staging)
    staging.symlink_to(outside)
    assert cli("get", HASH).code == 3


@pytest.mark.parametrize("error", [None, IntegrityError("wrong data"), OSError("disk full")])
def test_a_staging_directory_that_is_swapped_for_a_link_is_not_followed(
    tmp_path: Path, outside: Path, error: Exception | None
) -> None:
    """The data goes to, and comes from, the directory that was opened, and the caller sees its own error."""
    with (
        nullcontext() if error is None else pytest.raises(type(error), match=str(error)),
        destination(str(tmp_path / "x"), "x") as goal,
        goal.staged(b".staging") as fd,
    ):
        (tmp_path / ".staging").rename(tmp_path / "moved")
        (tmp_path / ".staging").symlink_to(outside)
        with closing(TreeWriter(fd)) as writer:
            writer.directory(ROOT)
            writer.file(b"f", executable=False, size=0).close()
        if error is not None:
            raise error

    assert (tmp_path / "x/f").exists() is (error is None)
    assert (tmp_path / ".staging").is_symlink()


def test_a_dangling_link_at_the_destination_is_refused(cli: InProcess, staging: Path, outside: Path) -> None:
    Path("x").symlink_to(outside / "new")
    assert cli("get", HASH).code == 2


def test_the_writer_itself_refuses_bad_names_and_links(tmp_path: Path, outside: Path) -> None:
    """Tests names that the parsers would reject earlier, and links that a race could create."""
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with closing(TreeWriter(fd)) as writer:
            for name in (b"", b".", b"..", b"../f", b"/f", b"a\0b"):
                for write in (
                    writer.directory,
                    lambda name: writer.symlink(name, b"x"),
                    lambda name: writer.file(name, False, 1),
                ):
                    with pytest.raises(NarError):
                        write(name)
            writer.directory(ROOT)
            writer.symlink(b"a", os.fsencode(outside))
            with pytest.raises(NotADirectoryError):
                writer.directory(b"a")
            with closing(writer.file(b"a", False, 4)) as file:
                file.write(b"evil", 0)
    finally:
        os.close(fd)
    assert (tmp_path / "root/a").read_bytes() == b"evil"
