"""The command line arguments that the processes of a mount pass to each other."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Self

from narmount.fuse.protocol import Agreed


@dataclass(frozen=True, slots=True)
class _Argument:
    """A value that is passed as JSON to another process of the same version."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        for field in fields(cls):
            if field.type is Path:
                values[field.name] = Path(values[field.name])
            elif field.type is Agreed:
                values[field.name] = Agreed(**values[field.name])
        return cls(**values)


@dataclass(frozen=True, slots=True)
class MountOptions(_Argument):
    """The options of a mount. ``nar-serve mount`` passes them to the holder.

    ``ready_fd`` is the pipe on which the holder reports that the mount is ready, or why mounting failed. ``metrics`` is the
    address to serve Prometheus metrics on; empty for none.
    """

    target: Path
    allow_other: bool
    passthrough: bool
    run_dir: Path
    cache_dir: Path
    ready_fd: int | None = None
    metrics: str = ""


@dataclass(frozen=True, slots=True)
class MountHandover(_Argument):
    """A mount. The holder passes this value to each worker. If the holder dies, its worker becomes the holder and passes it on.

    The first four fields are file descriptors, which the process inherits: the device, the listening control socket (at the path
    ``control``), and the memory files of `PathNumbers` and `PassthroughFiles`. ``generation`` is 0 for the first worker and grows
    by one with each new worker. ``since`` is when the file system was mounted, in seconds since the epoch.
    ``no_passthrough_reason`` says why the kernel does not read files itself; it is empty if the kernel does.
    """

    device: int
    listener: int
    path_numbers: int
    passthrough_files: int
    generation: int
    since: float
    agreed: Agreed
    no_passthrough_reason: str
    target: Path
    control: Path
    control_inode: int
    metrics: str

    @property
    def mode(self) -> str:
        return "plain" if self.no_passthrough_reason else "passthrough"

    @property
    def descriptors(self) -> tuple[int, ...]:
        return self.device, self.listener, self.path_numbers, self.passthrough_files
