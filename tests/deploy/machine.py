"""What the kernel says of the servers' processes: Linux' /proc."""

import os
import time
from pathlib import Path
from typing import NamedTuple

from tests.support.server import ServerProcess

_TICK = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Use(NamedTuple):
    """What the processes of a server use; processor times are in seconds.

    Attributes:
        instance: As Prometheus calls the server.
        processor, loop: Processor time of all threads, and of the event loops' threads.
        resident, virtual: Bytes of memory.
        files, files_allowed: File descriptors.
        uptime: Seconds since the first of them began.
    """

    instance: str
    processor: float
    loop: float
    resident: float
    virtual: float
    files: float
    files_allowed: float
    uptime: float

    def since(self, before: "Use") -> "Use":
        """With the processor time since then."""
        return self._replace(processor=self.processor - before.processor, loop=self.loop - before.loop)


def use_of(server: ServerProcess) -> Use:
    """What a server uses now: its workers, if it has any."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    workers = [child for child in children if "recurra_server.worker" in Path(f"/proc/{child}/cmdline").read_text()]
    folders = [Path("/proc") / name for name in workers or [str(server.pid)]]
    pages = [[int(value) for value in (folder / "statm").read_text().split()] for folder in folders]
    limits = [line.split() for folder in folders for line in (folder / "limits").read_text().splitlines()]
    return Use(
        instance=server.metrics_url.removeprefix("http://").removesuffix("/metrics"),
        processor=sum(_processor(folder) for folder in folders),
        loop=sum(_processor(folder / "task" / folder.name) for folder in folders),
        resident=sum(of[1] for of in pages) * _PAGE,
        virtual=sum(of[0] for of in pages) * _PAGE,
        files=sum(len(os.listdir(folder / "fd")) for folder in folders),
        files_allowed=sum(float(words[3]) for words in limits if words[:3] == ["Max", "open", "files"]),
        uptime=max(_uptime(folder) for folder in folders),
    )


def _stat(folder: Path) -> list[str]:
    return (folder / "stat").read_text().rpartition(") ")[2].split()  # from the third field on


def _processor(folder: Path) -> float:
    user, system = _stat(folder)[11:13]
    return (int(user) + int(system)) / _TICK


def _uptime(folder: Path) -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(_stat(folder)[19]) / _TICK
