"""What several processes serve alike: a change that a call asks of one of them is made in all, or in none.

The call reaches a worker; it asks the process that keeps the workers, and that one asks all workers to prepare the
change, and then to make it.
"""

import asyncio
from collections.abc import Iterable
from contextlib import AsyncExitStack
from typing import Any

from recurra_server.catalog import Catalog, Prepared
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import EngineError, ModelRefusedError
from recurra_server.engine.served_model import ServedModel
from recurra_server.peer import Peer, PeerGoneError
from recurra_server.rpc.models import ModelKey, Unloaded
from recurra_server.runtimes.repository import refuse_what_none_has


class SharedCatalog:
    """The catalog of a worker, as its callers see it: what they change, they change for all workers.

    Args:
        catalog: What this worker serves.
        engine: Where that is.
        keeper: The process that keeps the workers.
    """

    def __init__(self, catalog: Catalog, engine: Engine, keeper: Peer) -> None:
        self._catalog = catalog
        self._engine = engine
        self._keeper = keeper
        self._prepared: Prepared | None = None
        self._preparing = AsyncExitStack()  # from "prepare" to "serve" or "drop"
        keeper.answer = self._answer

    async def load(self, name: str, version: str, digest: str) -> tuple[ServedModel, bool]:
        """Load a version in all workers; see `Catalog.load`.

        Raises:
            ModelNotFoundError, ModelRefusedError: One of them cannot; none has changed.
        """
        refuse_what_none_has(name, version, digest)
        done = await self._keeper.ask("load", name=name, version=version, digest=digest)
        return self._engine.model(name, done["version"]), done["changed"]

    async def unload(self, name: str, version: str) -> Unloaded:
        """Unload a version, or all, in all workers; the sessions are those of all.

        Raises:
            ModelNotFoundError: It is not served.
        """
        refuse_what_none_has(name, version)
        done = await self._keeper.ask("unload", name=name, version=version)
        return Unloaded([tuple(key) for key in done["keys"]], done["sessions"])

    async def _answer(self, what: str, facts: dict[str, Any]) -> dict[str, Any]:
        """Do what the keeper asks of every worker."""
        match what:
            case "prepare":
                preparing = self._catalog.preparing(**facts)
                self._prepared = prepared = await self._preparing.enter_async_context(preparing)
                return {"version": prepared.model.version, "digest": prepared.model.digest}
            case "serve":
                assert self._prepared is not None  # noqa: S101 - it is asked after "prepare"
                prepared, self._prepared = self._prepared, None
                async with self._preparing:
                    return {"changed": (await self._catalog.serve(prepared))[1]}
            case "drop":
                self._prepared = None
                await self._preparing.aclose()
                await self._catalog.tell_health(**facts)
                return {}
            case "unload":
                return (await self._catalog.unload(**facts))._asdict()
        raise ValueError(what)


class Changes:
    """The keeper's side: all workers, and what has been changed in them since they began.

    Attributes:
        members: The workers that serve.
        left_out: What workers leave out of the repository, as it was unloaded by call.
        verdicts: Of what was tried, why it cannot be used; nothing where it can.
        one_at_a_time: Held while something changes; to be held as well while a worker begins.
    """

    def __init__(self) -> None:
        self.members: dict[int, Peer] = {}
        self.left_out: set[ModelKey] = set()
        self.verdicts: dict[ModelKey, str] = {}
        self.one_at_a_time = asyncio.Lock()

    def add(self, place: int, worker: Peer) -> None:
        """Take in a worker that serves."""

        async def answer(what: str, facts: dict[str, Any]) -> dict[str, Any]:
            async with self.one_at_a_time:
                return await (self._load(worker, **facts) if what == "load" else self._unload(**facts))

        self.members[place] = worker
        worker.answer = answer

    async def _load(self, asker: Peer, name: str, version: str, digest: str) -> dict[str, Any]:
        """Have the worker that was called try the version; then all others need only load it."""
        others = [worker for worker in self.members.values() if worker is not asker]
        try:
            found = await asker.ask("prepare", name=name, version=version, digest=digest)
        except ModelRefusedError as error:  # the others are to say, too, that this version is not served
            await _all(others, "drop", name=name, version=error.metadata["version"])
            raise
        try:
            await _all(others, "prepare", name=name, **found, tried=True)
        except EngineError:  # whatever it is: the others have it in memory, and wait
            await _all(self.members.values(), "drop", name=name, version=found["version"])
            raise
        served = await _all(self.members.values(), "serve")
        self.left_out -= {key for key in self.left_out if key[:2] == (name, found["version"])}
        self.verdicts[name, found["version"], found["digest"]] = ""
        return {"version": found["version"], "changed": any(one["changed"] for one in served)}

    async def _unload(self, name: str, version: str) -> dict[str, Any]:
        done = await _all(self.members.values(), "unload", name=name, version=version)
        keys = sorted({tuple(key) for one in done for key in one["keys"]})
        self.left_out.update(keys)
        return {"keys": keys, "sessions": sum(one["sessions"] for one in done)}


async def _all(workers: Iterable[Peer], what: str, **facts: Any) -> list[dict[str, Any]]:
    """Ask all workers; one that has died meanwhile is left out, as the one that takes its place begins anew.

    Raises:
        EngineError: What the first has raised of those that have; all have answered.
    """
    answers = await asyncio.gather(*(worker.ask(what, **facts) for worker in workers), return_exceptions=True)
    for answer in answers:
        if isinstance(answer, BaseException) and not isinstance(answer, PeerGoneError):
            raise answer
    return [answer for answer in answers if not isinstance(answer, BaseException)]
