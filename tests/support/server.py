"""A real server process for tests: started, found ready, and stopped."""

import re
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

_START_SECONDS = 60.0


class Samples:
    """What a scrape found."""

    def __init__(self, text: str) -> None:
        told = [
            ((sample.name, frozenset(sample.labels.items())), sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        ]
        self._values = dict(told)
        assert len(self._values) == len(told), "a sample is told twice"
        self.names = {name for name, _ in self._values}

    def labels(self) -> list[tuple[str, dict[str, str]]]:
        """The name and labels of each sample."""
        return [(name, dict(labels)) for name, labels in self._values]

    def get(self, name: str, **labels: str) -> float | None:
        """The value of a sample with exactly these labels, or None; of any digest if none is given."""
        wanted = labels.items()
        found = [
            value
            for (other, have), value in self._values.items()
            if other == name and {label for label in have if label[0] != "digest" or "digest" in labels} == wanted
        ]
        return sum(found) if found else None


class ServerProcess:
    """`recurra serve` on free ports.

    Attributes:
        target: Address of the gRPC port.
        output: What it has printed so far.
        new_output: Is set with each line.

    Args:
        models: Its model repository.
        options: Flags of `recurra serve`.
        ready: How the last line begins that it prints before it serves.
        port: For gRPC; 0 for a free one.
        recurra: How the command line is called.
    """

    def __init__(
        self,
        models: Path,
        *options: str,
        ready: str = "metrics on ",
        port: int = 0,
        recurra: Sequence[str] = (str(Path(sys.executable).with_name("recurra")),),
    ) -> None:
        command = [*recurra, "serve", "--models", str(models)]
        self._process = subprocess.Popen(
            [*command, "--port", str(port), "--metrics-port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.output = ""
        self._last_line = ready
        self._ready, self.new_output = threading.Event(), threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if not self._ready.wait(_START_SECONDS) or ready not in self.output:
            self.kill()
            raise RuntimeError(f"the server did not start:\n{self.output}")
        self.target = self._find(r"gRPC on (\S+)")

    @property
    def metrics_url(self) -> str:
        """Where the metrics are."""
        return self._find(r"metrics on (\S+)")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def terminate(self) -> None:
        """Ask it to drain."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._process.kill()
        self.wait()

    def wait(self, timeout: float = 30.0) -> int:
        """Wait for its end and return its exit status."""
        status = self._process.wait(timeout)
        self._reader.join(timeout)
        return status

    def stop(self) -> None:
        """End it in order, if it still runs."""
        if self._process.poll() is None:
            self.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.kill()

    def metrics(self, token: str = "") -> "Samples":
        """Scrape it, as who has a token where that is needed."""
        header = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(self.metrics_url, headers=header)  # noqa: S310
        with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
            return Samples(answer.read().decode())

    def _find(self, pattern: str) -> str:
        found = re.search(pattern, self.output)
        assert found is not None, self.output
        return found[1]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            self.new_output.set()
            if line.startswith(self._last_line):
                self._ready.set()
        self._ready.set()
        self.new_output.set()


@contextmanager
def running_server(models: Path, *options: str, ready: str = "metrics on ", **more: Any) -> Iterator[ServerProcess]:
    """A server for the length of a `with` block."""
    server = ServerProcess(models, *options, ready=ready, **more)
    try:
        yield server
    finally:
        server.stop()


def children(pid: int) -> list[int]:
    """The processes that a process has started from its first thread."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def alive(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
