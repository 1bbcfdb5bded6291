"""Prometheus metrics of mounts and volumes."""

import importlib.util
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from narcore.errors import SettingsError
from narmount.metrics import Family, check_metrics, mount_metrics, serve_metrics, volume_metrics

STATUS: dict[str, object] = {
    "target": "/nix/store",
    "mode": "plain",
    "restarts": 2,
    "since": 1.5e9,
    "cache": {"directory": "/x", "bytes": 10, "limit": 20},
    "counts": {"LOOKUP": 3, "READ": 4},
    "lookups": {"hit": 1, "error": 2},
    "waiting": 5,
    "read_bytes": 6,
}


def shown(collect: Callable[[], list[Family]]) -> str:
    port = serve_metrics("127.0.0.1:0", collect)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def test_the_status_of_a_mount_becomes_metrics() -> None:
    lines = shown(lambda: mount_metrics(STATUS)).splitlines()
    assert {
        'nar_mount_info{mode="plain",target="/nix/store"} 1.0',
        'nar_mount_requests_total{opcode="LOOKUP"} 3.0',
        'nar_mount_lookups_total{outcome="error"} 2.0',
        "nar_mount_restarts_total 2.0",
        "nar_mount_waiting 5.0",
        "nar_mount_read_bytes_total 6.0",
        "nar_mount_cache_bytes 10.0",
        "nar_mount_cache_limit_bytes 20.0",
        "nar_mount_start_time_seconds 1.5e+09",
        "# TYPE nar_mount_read_bytes_total counter",
    } <= {*lines}
    assert not any("interrupts" in line for line in lines)  # a value that the status lacks


def test_volumes_are_counted_by_mode() -> None:
    counts: Iterator[int] = iter([2, 3])
    assert 'nar_volumes_published{mode="ro"} 2.0' in shown(lambda: volume_metrics({"ro": next(counts), "overlay": 0}))


@pytest.mark.parametrize("address", ["9000", "x:y", ":99999", "::1:80"])
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(SettingsError, match=r"^--metrics"):
        check_metrics(address)


def test_addresses_are_parsed() -> None:
    assert check_metrics(":9000") == ("0.0.0.0", 9000)
    assert check_metrics("[::1]:9000") == ("::1", 9000)


def test_a_port_in_use_is_an_error() -> None:
    port = serve_metrics("127.0.0.1:0", list)
    with pytest.raises(SettingsError, match="can't listen there: Address already in use"):
        serve_metrics(f"127.0.0.1:{port}", list)


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(SettingsError, match="pip install '\\.\\[metrics\\]'"):
        check_metrics(":9000")
