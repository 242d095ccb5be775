"""Server processes: started, watched and ended, with whatever processes they start themselves."""

import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from benchmarks.venvs import UnavailableError

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_START_SECONDS: Final = 90.0


def free_port() -> int:
    """A TCP port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def family(pid: int) -> list[int]:
    """A process and all that descend from it, or were started in its session."""
    parents: dict[int, int] = {}
    members = {pid}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
            if int(fields[3]) == pid:
                members.add(int(entry.name))
    grown = True
    while grown:
        more = {child for child, parent in parents.items() if parent in members} - members
        members |= more
        grown = bool(more)
    return sorted(members)


def alive(pid: int) -> bool:
    """Whether a process is there and has not ended; one that its parent has not asked after has."""
    return (_stat(pid) or ["X"])[0] not in "ZX"


def cpu_seconds(pids: Sequence[int]) -> float:
    """Processor time that processes have taken, in seconds (to 10 ms)."""
    return sum(int(fields[11]) + int(fields[12]) for pid in pids if (fields := _stat(pid))) / _TICKS


def give_way() -> None:
    """Let this process take of the processors only what others leave, as if it ran on a machine of its own."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def resident_bytes(pids: Sequence[int]) -> int:
    """Resident memory of processes."""
    return sum(int(fields[21]) * _PAGE for pid in pids if (fields := _stat(pid)))


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; none where the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return text.rpartition(")")[2].split()  # the name before it may hold anything


@contextmanager
def running(
    command: Sequence[str | Path], port: int, *, env: Mapping[str, str] | None = None, folder: Path | None = None
) -> Iterator[int]:
    """A server for the length of a `with` block, from when it listens: its process id.

    Raises:
        UnavailableError: It ended or did not listen in time, with the last line that it printed.
    """
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=folder,
            start_new_session=True,
        )
        try:
            _await_port(process, port, output.fileno())
            yield process.pid
        finally:
            _end(process)


def last_words(file: int) -> str:
    """The last line of what a process has printed that tells most: an error, where there is one."""
    lines = [line.strip() for line in os.pread(file, 1 << 20, 0).decode(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or "error:" in line]
    return (errors or lines or ["it printed nothing"])[-1][:300]


def _await_port(process: "subprocess.Popen[bytes]", port: int, output: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise UnavailableError(f"ended at its start: {last_words(output)}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise UnavailableError(f"did not listen within {_START_SECONDS:.0f} s: {last_words(output)}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a server and all it has started; those that do not go are killed."""
    if process.returncode is not None:  # it was asked after, and its number may be another's by now
        return
    members = family(process.pid)
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pid in members:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()
