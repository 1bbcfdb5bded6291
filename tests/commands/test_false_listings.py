"""The commands with a wrong listing: a file is right or an error; after the NAR is verified, everything is right."""

import os
from pathlib import Path

import pytest

from tests.api.falselistings import LIES, TRUE, changed, files_of
from tests.builders import Exe, Link, hash_part
from tests.commands.running import InProcess, stored

HASH = hash_part("x")


@pytest.mark.parametrize("cache_dir", ["off", "nars"])
@pytest.mark.parametrize("command", ["cat", "get"])
@pytest.mark.parametrize("lie", LIES)
def test_a_file_is_right_or_an_error(cli: InProcess, tmp_path: Path, lie: str, command: str, cache_dir: str) -> None:
    directory = "off" if cache_dir == "off" else str(tmp_path / cache_dir)
    cli.use(stored(tmp_path / "store", files_of(LIES[lie], "zstd")), NAR_CACHE_DIR=directory)
    for name in LIES[lie].keys() - {"zero"}:
        done = cli(command, f"{HASH}/{name}")
        if done.code == 0 and command == "cat":
            true = TRUE["data"] if name == "link" else TRUE[name]
            assert done.out == (true.data if isinstance(true, Exe) else true), name
        elif done.code == 0 and Path(name).is_file() and not Path(name).is_symlink():
            true = TRUE[name]
            assert not isinstance(true, Link)
            assert Path(name).read_bytes() == (true.data if isinstance(true, Exe) else true), name
            assert os.access(name, os.X_OK) == isinstance(true, Exe)


def test_a_listing_is_right_when_the_nar_is_cached(cli: InProcess, tmp_path: Path) -> None:
    cli.use(stored(tmp_path / "store", files_of(changed(evil=b"evil"), "zstd")), NAR_CACHE_DIR=str(tmp_path / "nars"))
    assert cli.ok("ls", HASH).lines == sorted(f"./{name}" for name in {*TRUE, "evil"})
    assert cli("cat", f"{HASH}/evil").code == 1
    assert cli.ok("ls", HASH).lines == sorted(f"./{name}" for name in TRUE)
    assert cli("cat", f"{HASH}/evil").code == 1
