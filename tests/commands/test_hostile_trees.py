"""Nothing is ever written outside of the destination: whatever is in the NAR, and whatever waits on the disk."""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from narcore.errors import NarError
from narcore.formats.narinfo import NarInfo
from narserve.get.staging import ROOT
from narserve.get.treewriter import TreeWriter
from tests.builders import COMPRESS, Tree, binary_cache, hash_part, link, nar_info, store_path
from tests.commands.running import InProcess, stored
from tests.formats.nar_samples import directory, entry, regular, root, symlink

EVIL = regular(b"evil")
HASH = hash_part("x")


def hostile_nars(outside: bytes) -> dict[str, bytes]:
    """NARs that a careless program would follow out of the directory it writes to."""
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
    """A cache that is in order, but for what is in the NAR; its listing is of a harmless tree."""
    info: NarInfo = nar_info(store_path("x"), archive)
    return {
        info.url: COMPRESS["zstd"](archive),
        f"{HASH}.narinfo": info.to_text().encode(),
        f"{HASH}.ls": binary_cache({"x": {"f": b"evil"}})[f"{HASH}.ls"],
    }


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody may write to, and the places around the destination: unchanged at the end."""
    path = tmp_path / "outside"
    path.mkdir()
    (path / "kept").write_bytes(b"kept")
    yield path
    assert [child.name for child in path.iterdir()] == ["kept"]
    assert (path / "kept").read_bytes() == b"kept"
    assert not (tmp_path / "f").exists()


@pytest.mark.parametrize("cache_dir", ["kept", "off"])
@pytest.mark.parametrize("kind", hostile_nars(b"/"))
def test_hostile_nars(cli: InProcess, tmp_path: Path, outside: Path, kind: str, cache_dir: str) -> None:
    archive = root(hostile_nars(os.fsencode(outside))[kind])
    cli.use(stored(tmp_path / "store", cache_of(archive)), **({"NAR_CACHE_DIR": "off"} if cache_dir == "off" else {}))
    done = cli("get", HASH)
    assert (done.code, done.out, os.listdir()) == (1, b"", [])
    assert len(done.err.splitlines()) == 1


def test_links_are_written_and_not_followed(cli: InProcess, tmp_path: Path, outside: Path) -> None:
    tree: dict[str, Tree] = {
        "a": link(os.fsencode(outside)),
        "b": link("../../../outside"),
        "c": {"up": link("..")},
        "z": b"z",
    }
    cli.use(stored(tmp_path / "store", binary_cache({"x": tree})))
    cli.ok("get", HASH)
    assert [os.readlink(Path("x") / name) for name in "ab"] == [str(outside), "../../../outside"]  # noqa: PTH115


# --- what waits on the disk


TREE: dict[str, Tree] = {"d": {"f": b"of the tree"}, "e": b"of the tree, too", "l": link("d")}


@pytest.fixture
def staging(cli: InProcess, tmp_path: Path) -> Path:
    """Where ``get`` of the store path x writes: left by a run whose NAR broke off. The next one finds the NAR whole."""
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
        (top / name).symlink_to(outside / "kept")
    cli.ok("get", HASH)
    assert (Path("x/d/f").read_bytes(), Path("x/e").read_bytes()) == (b"of the tree", b"of the tree, too")
    assert not Path("x/e").is_symlink()
    assert os.readlink("x/l") == "d"  # noqa: PTH115


def test_a_planted_hard_link_is_not_written_through(cli: InProcess, staging: Path, outside: Path) -> None:
    (staging / "root").mkdir(exist_ok=True)
    (staging / "root/e").unlink(missing_ok=True)
    (outside / "kept").write_bytes(b"kept")
    (staging / "root/e").hardlink_to(outside / "kept")
    cli.ok("get", HASH)
    assert Path("x/e").read_bytes() == b"of the tree, too"


@pytest.mark.parametrize("kept", [True, False])
def test_planted_contents_are_found_out(cli: InProcess, staging: Path, tmp_path: Path, kept: bool) -> None:
    """Bytes of another tree in a file of the right size: compared where that costs no download."""
    cli.use(NAR_CACHE_DIR=str(tmp_path / "nars") if kept else "off")
    if kept:
        cli.ok("cat", f"{HASH}/e")
    (staging / "root/d").mkdir(parents=True, exist_ok=True)
    (staging / "root/e").write_bytes(b"of another tree!")
    (staging / "root/d/f").write_bytes(b"of a")
    cli.ok("get", HASH)
    assert (Path("x/d/f").read_bytes(), Path("x/e").read_bytes()) == (b"of the tree", b"of the tree, too")


@pytest.mark.parametrize("place", ["root", "root/d"])
def test_a_planted_link_to_a_directory_ends_it(cli: InProcess, staging: Path, outside: Path, place: str) -> None:
    shutil.rmtree(staging / place, ignore_errors=True)
    (staging / place).parent.mkdir(exist_ok=True)
    (staging / place).symlink_to(outside)
    done = cli("get", HASH)
    assert (done.code, done.out) == (3, b"")
    assert os.listdir() == [staging.name]


def test_the_staging_directory_must_be_ours_alone(cli: InProcess, staging: Path, outside: Path) -> None:
    staging.chmod(0o777)
    done = cli("get", HASH)
    assert (done.code, "others can write to it" in done.err) == (3, True)
    shutil.rmtree(staging)
    staging.symlink_to(outside)
    assert cli("get", HASH).code == 3


def test_the_destination_may_be_a_link_to_nowhere(cli: InProcess, staging: Path, outside: Path) -> None:
    Path("x").symlink_to(outside / "new")
    assert cli("get", HASH).code == 2


def test_the_writer_itself_refuses_bad_names_and_links(tmp_path: Path, outside: Path) -> None:
    """What the parsers never let through, and what a race could put there."""
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
