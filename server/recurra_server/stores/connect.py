"""From the URL of a store to a client that can run a script there: a single server, one by Sentinel, or a cluster."""

from collections.abc import Sequence
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from valkey.asyncio import Valkey
from valkey.asyncio.cluster import ClusterNode, ValkeyCluster
from valkey.asyncio.sentinel import Sentinel
from valkey.exceptions import NoScriptError

_PORT = 6379
_SENTINEL_PORT = 26379


class Client(Protocol):
    """Runs one script."""

    async def run(self, keys: Sequence[bytes], command: str, arguments: Sequence[bytes]) -> list[Any]:
        """Do what `command` says with each key and its argument, in one round trip.

        Raises:
            ValkeyError, OSError: It was done, or not, or with some of them.
        """
        ...

    async def run_ids(self) -> list[str]:
        """What names the processes that keep the data: one that was started anew has another."""
        ...

    async def close(self) -> None:
        """Close the connections."""
        ...


class SingleClient:
    """Of one server, or of the one that Sentinel says is the primary."""

    def __init__(self, client: Any, script: str) -> None:
        self._client = client
        self._script = client.register_script(script)

    async def run(self, keys: Sequence[bytes], command: str, arguments: Sequence[bytes]) -> list[Any]:
        """Run the script once, for all keys."""
        answers: list[Any] = await self._script(keys, [command, *arguments])
        return answers

    async def run_ids(self) -> list[str]:
        """That of the server."""
        return [(await self._client.info("server"))["run_id"]]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


class ClusterClient:
    """Of a cluster: each key has its own call, as keys may be on different nodes; each node gets its calls at once."""

    def __init__(self, client: Any, script: str) -> None:
        self._client = client
        self._text = script
        self._sha = client.register_script(script).sha

    async def run(self, keys: Sequence[bytes], command: str, arguments: Sequence[bytes]) -> list[Any]:
        """Run the script once for each key, in one pipeline."""
        answers = await self._pipeline(keys, command, arguments)
        if any(isinstance(answer, NoScriptError) for answer in answers):
            await self._client.script_load(self._text)  # on all primaries; what was done is done again to the same end
            answers = await self._pipeline(keys, command, arguments)
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return [answer[0] for answer in answers]

    async def run_ids(self) -> list[str]:
        """Those of all primaries."""
        info = await self._client.execute_command("INFO", "server", target_nodes=ValkeyCluster.PRIMARIES)
        return sorted(each["run_id"] for each in info.values())

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _pipeline(self, keys: Sequence[bytes], command: str, arguments: Sequence[bytes]) -> list[Any]:
        pipeline = self._client.pipeline()
        for key, argument in zip(keys, arguments, strict=True):
            pipeline.execute_command("EVALSHA", self._sha, 1, key, command, argument)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def connect(url: str, script: str, timeout: float) -> Client:
    """A client for what a URL names; nothing is sent yet.

    Raises:
        ValueError: It is no such URL.
    """
    options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
    scheme, _, *rest = urlsplit(url)
    if scheme != "unix" and "@" in "".join(rest):  # the password ended too early, and the host is a part of it
        raise ValueError("a / ? or # in a password has to be escaped, and an @ behind the host")
    if scheme == "sentinel":
        return SingleClient(_by_sentinel(url, {**options, "health_check_interval": 30}), script)
    if scheme in ("cluster", "clusters"):
        return ClusterClient(_cluster(url, options), script)
    return SingleClient(Valkey.from_url(url, **options, health_check_interval=30), script)


def _by_sentinel(url: str, options: dict[str, Any]) -> Any:
    service = urlsplit(url).path.strip("/")
    places = _places(url, _SENTINEL_PORT)
    if not service or not places:
        raise ValueError("a Sentinel is named as sentinel://host:port,host:port/service")
    sentinel = Sentinel(places, **options, **_options_of(url, "valkey"))  # type: ignore[no-untyped-call]
    return sentinel.master_for(service)


def _cluster(url: str, options: dict[str, Any]) -> Any:
    places = _places(url, _PORT)
    if not places or urlsplit(url).path.strip("/"):
        raise ValueError("a cluster is named as cluster://host:port,host:port (clusters:// with TLS)")
    nodes = [ClusterNode(host, port) for host, port in places]
    read = _options_of(url, "valkey")
    tls = urlsplit(url).scheme == "clusters"
    return ValkeyCluster(startup_nodes=nodes, ssl=tls, **options, **read)


def _places(url: str, port: int) -> list[tuple[str, int]]:
    """The hosts and ports of a URL that names several; none where one is not named."""
    hosts = [host.rpartition("@")[2] for host in urlsplit(url).netloc.split(",")]
    places = [urlsplit(f"//{host}") for host in hosts]
    return [(place.hostname, place.port or port) for place in places if place.hostname] if all(hosts) else []


def _options_of(url: str, scheme: str) -> dict[str, Any]:
    """What stands behind the `?`, as the library reads it for a server's URL."""
    like_a_server = urlunsplit((scheme, "localhost", "", urlencode(parse_qsl(urlsplit(url).query)), ""))
    read = Valkey.from_url(like_a_server).connection_pool.connection_kwargs
    return {key: value for key, value in read.items() if key not in ("host", "port")}
