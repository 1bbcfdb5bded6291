"""Two store paths with the same NAR, in two files, one of which is damaged: the other path stays available."""

import threading
from contextlib import suppress
from pathlib import Path

import pytest

from narcore.binarycache import BinaryCache
from narcore.cache.narcache import NarCache
from narcore.errors import NarcoreError
from narcore.stores.memory import MemoryStore
from tests.builders import COMPRESS, binary_cache, hash_part, nar, nar_info, store_path

CONTENTS = bytes(range(256)) * 2000
TREE = {"first": CONTENTS, "last": b"last"}
NAR = nar(TREE)
SOUND = binary_cache({"sound": TREE})
DAMAGES = {
    "cut": COMPRESS["zstd"](NAR)[:-500],
    "other bytes": COMPRESS["zstd"](NAR.replace(CONTENTS, CONTENTS[::-1])),
    "other end": COMPRESS["zstd"](NAR.replace(b"last\0", b"lost\0")),
    "missing": None,
}


def damaged_files(damage: str) -> dict[str, bytes]:
    """Return the files of the path whose NAR file is damaged; its compression and hash are those of the sound path."""
    info = nar_info(store_path("damaged"), NAR, url="nar/damaged.nar.zst")
    packed = DAMAGES[damage]
    files = {f"{hash_part('damaged')}.narinfo": info.to_text().encode()}
    return files if packed is None else files | {info.url: packed}


def read(cache: BinaryCache, name: str) -> bytes:
    file = cache.open(cache.path_info(hash_part(name))).read("first")
    try:
        return b"".join(file)
    finally:
        file.close()


def attack(cache: BinaryCache, stop: threading.Event) -> None:
    """Read the damaged path again and again; once the sound path is cached, the damaged one may be readable, too."""
    while not stop.is_set():
        with suppress(NarcoreError):
            assert read(cache, "damaged") == CONTENTS


@pytest.mark.parametrize("listings", [True, False])
@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_sound_path_is_answered_from_the_second_request_on_while_others_request_the_damaged_one(
    damage: str, strict: bool, listings: bool, tmp_path: Path
) -> None:
    sound = {name: data for name, data in SOUND.items() if listings or not name.endswith(".ls")}
    stop = threading.Event()
    for processes in range(1, 3):
        # Two caches of one directory simulate two processes.
        directory = tmp_path / str(processes)
        nars = [NarCache(directory, size=lambda _: 1 << 30, max_fills=4) for _ in range(processes)]
        caches = [
            BinaryCache([MemoryStore(sound | damaged_files(damage))], cache=cache, strict=strict) for cache in nars
        ]
        stop.clear()
        threads = [threading.Thread(target=attack, args=(caches[0], stop)) for _ in range(6)]
        for thread in threads:
            thread.start()
        try:
            with suppress(NarcoreError):  # it may have returned bytes of a fill of the damaged file
                assert read(caches[-1], "sound") == CONTENTS
            assert read(caches[-1], "sound") == CONTENTS
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            for cache in caches:
                cache.close()
