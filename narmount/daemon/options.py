"""How one file system is mounted: what the command line hands to the holder, and the holder to its workers."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from narmount.fuse.protocol import Agreed


@dataclass(frozen=True, slots=True)
class MountOptions:
    """``ready_fd``: where to say that it is mounted, or why not. ``metrics``: an address for Prometheus, or nothing."""

    target: Path
    allow_other: bool
    passthrough: bool
    run_dir: Path
    cache_dir: Path
    ready_fd: int | None = None
    metrics: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        for name in ("target", "run_dir", "cache_dir"):
            fields[name] = Path(fields[name])
        return cls(**fields)


@dataclass(frozen=True, slots=True)
class MountHandover:
    """A mount, as it is handed on from process to process. The first four are descriptors, which are inherited: the device, the
    listening control socket (at ``control``), and the memory files of the names and the files that the kernel reads by itself.

    ``generation`` is 0 for the first worker, and one more for each that takes its place. ``plain_reason`` says why file contents
    are not passed through by the kernel; it is empty where they are. ``since``: in seconds since the epoch.
    """

    device: int
    listener: int
    path_numbers: int
    passthrough_files: int
    generation: int
    since: float
    minor: int
    passthrough: bool
    resend: bool
    no_passthrough_reason: str
    target: Path
    control: Path
    control_inode: int
    metrics: str

    @property
    def agreed(self) -> Agreed:
        return Agreed(self.minor, self.passthrough, self.resend)

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.device, self.listener, self.path_numbers, self.passthrough_files

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        fields = json.loads(text)
        for name in ("target", "control"):
            fields[name] = Path(fields[name])
        return cls(**fields)
