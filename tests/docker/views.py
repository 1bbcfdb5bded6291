"""Mounts that are only remembered: what the driver asks for, and what fails when it does."""

from dataclasses import dataclass, field
from pathlib import Path

from narmount.volumes.request import VolumeRequest


class Killed(BaseException):
    """As if by kill -9: nothing that comes later is done."""


@dataclass
class Views:
    """``mounted``: where which volume is. ``fails`` is raised by the next call."""

    mounted: dict[Path, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    asked: list[VolumeRequest] = field(default_factory=list)
    fails: BaseException | None = None

    def publish(
        self,
        volume_id: str,
        target: Path,
        request: VolumeRequest,
        *,
        keep: bool,
    ) -> None:
        self._fail()
        assert keep
        self.asked.append(request)
        self.mounted[target] = volume_id
        self.written.add(volume_id)

    def unpublish(self, volume_id: str, target: Path, *, keep: bool) -> None:
        self._fail()
        self.mounted.pop(target, None)
        if not keep:
            self.written.discard(volume_id)

    def recover(self) -> None:
        self._fail()

    def _fail(self) -> None:
        failure, self.fails = self.fails, None
        if failure:
            raise failure
