"""Volumes that mount nothing, but record the calls of the driver and fail on request."""

from dataclasses import dataclass, field
from pathlib import Path

from narmount.volumes.request import VolumeRequest


class Killed(BaseException):
    """Stands for kill -9: as a BaseException, no error handler catches it."""


@dataclass
class FakeVolumes:
    """``mounted`` maps targets to ids, ``written`` has volumes with files, and the next call raises ``fails``."""

    mounted: dict[Path, str] = field(default_factory=dict)
    written: set[str] = field(default_factory=set)
    requests: list[VolumeRequest] = field(default_factory=list)
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
        self.requests.append(request)
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
