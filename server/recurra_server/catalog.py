"""What is served: loaded from the model repository, replaced and unloaded while the server runs.

A model is tried in a process of its own and loaded before it takes anybody's place: one that cannot be used changes
nothing. Sessions stay on the model they began with until they end. Changes are made one after the other, whoever asks.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import structlog

from recurra_server.driver import Driver
from recurra_server.engine.errors import ModelNotFoundError, ModelRefusedError, one_line, shown
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.shelf import version_key
from recurra_server.rpc.models import ModelKey, Unloaded
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.quickest import count_processors, load_quickest
from recurra_server.runtimes.repository import ModelFile, find_models, refuse_what_none_has
from recurra_server.screening import digest_of, log_if_refused, refusal, refuse_if, rehearse_all, screen
from recurra_server.settings import Settings

_log = structlog.get_logger(__name__)
# What a version's folder looked like: path, size and time of change of each file.
_Stamp = frozenset[tuple[str, int, int]]


class Prepared(NamedTuple):
    """A version that is loaded and can be served."""

    model: ServedModel
    by: tuple[OnnxRuntime, float] | None
    """What runs it, and the seconds that a full batch takes; None where it is served already."""


class Catalog:
    """Loads and unloads; its methods belong to the loop's thread.

    Args:
        settings: Where the repository is, and how to run models.
        driver: Runs what is loaded.
        executor: Where large models are run.
        tell_health: Called with "<name>" or "<name>/<version>" and whether it is served.
        loads: Is kept: of every version in the repository, whether it could be loaded when that was tried last.
    """

    def __init__(
        self,
        settings: Settings,
        driver: Driver,
        executor: ThreadPoolExecutor,
        tell_health: Callable[[str, bool], Awaitable[None]],
        loads: dict[tuple[str, str], bool],
    ) -> None:
        self._settings = settings
        self._driver = driver
        self._engine = driver.engine
        self._executor = executor
        self._tell_health = tell_health
        self._loads = loads
        self._one_at_a_time = asyncio.Lock()
        self._seen: dict[tuple[str, str], _Stamp] = {}

    async def load_all(
        self,
        *,
        excluded: Collection[ModelKey] = (),
        verdicts: Mapping[ModelKey, str] = MappingProxyType({}),
        going_on: Callable[[], object] = lambda: None,
    ) -> int:
        """Load every version before the server starts; what cannot be loaded is logged. See `screen`.

        Returns:
            How many there are in the repository.
        """
        files = find_models(self._settings.models)
        self._seen = self._stamps(files)
        screened = screen(self._settings, files, excluded=excluded, verdicts=verdicts, going_on=going_on)
        async for file, digest, why in screened:
            self._loads[file.name, file.version] = False  # until it is served
            if why and (file.name, file.version, digest) in verdicts:
                continue  # whoever tried it has said so
            with log_if_refused(file):
                refuse_if(why, file)
                self._serve(*self._make(file, digest))
        return len(files)

    async def load(self, name: str, version: str, digest: str) -> tuple[ServedModel, bool]:
        """Load a version, without one the latest, and hold it against a digest if one is given.

        Returns:
            What is served now, and whether that is new.

        Raises:
            ModelNotFoundError: The repository has no such version.
            ModelRefusedError: It cannot be loaded, or has another digest; what was served goes on.
        """
        refuse_what_none_has(name, version, digest)
        async with self.preparing(name, version, digest) as prepared:
            return await self.serve(prepared)

    @asynccontextmanager
    async def preparing(self, name: str, version: str, digest: str, *, tried: bool = False) -> AsyncIterator[Prepared]:
        """Do all of `load` but serve it; until it is served, or the context ends without, nothing else changes.

        One that was `tried` elsewhere with this digest is not tried again.

        Raises:
            ModelNotFoundError, ModelRefusedError: As `load`.
        """
        async with self._one_at_a_time:
            file = await self._find(name, version)
            try:
                prepared = await self._prepare(file, digest, tried=tried)
            except ModelRefusedError:
                await self.tell_health(file.name, file.version)
                raise
            yield prepared

    async def serve(self, prepared: Prepared) -> tuple[ServedModel, bool]:
        """Serve what is being prepared, to new sessions: the model, and whether that is new."""
        model, by = prepared
        self._loads[model.name, model.version] = True
        if by is not None:
            model = self._serve(model, *by)
        await self.tell_health(model.name, model.version)
        return model, by is not None

    async def unload(self, name: str, version: str) -> Unloaded:
        """Serve a version, without one all versions, to no new sessions.

        Raises:
            ModelNotFoundError: It is not served.
        """
        async with self._one_at_a_time:
            latest = self._engine.model(name, version)
            models = [latest] if version else [model for model in self._engine.models() if model.name == name]
            for model in models:
                self._engine.shelf.remove(model)
                _log.info("model_unloaded", model=name, version=model.version, sessions=model.sessions)
            for model in models:
                await self.tell_health(name, model.version)
            return Unloaded([model.key for model in models], sum(model.sessions for model in models))

    async def tell_health(self, name: str, version: str) -> None:
        """Say of a version, and of its model, whether it is served."""
        served = {(model.name, model.version) for model in self._engine.models()}
        await self._tell_health(f"{name}/{version}", (name, version) in served)
        await self._tell_health(name, any(name == other for other, _ in served))

    async def tell_health_of_all(self) -> None:
        """Say of every version whether it is served."""
        for name, version in self._seen:
            await self.tell_health(name, version)

    async def watch_forever(self, seconds: float) -> None:
        """Take in what changes in the repository: every version whose files are new, other than before, or gone."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self._look()
            except Exception:
                _log.exception("repository_not_read")

    async def _look(self) -> None:
        files = await asyncio.to_thread(find_models, self._settings.models)
        found = await asyncio.to_thread(self._stamps, files)
        for file in files:
            key = file.name, file.version
            if found[key] == self._seen.get(key):
                continue
            try:
                with log_if_refused(file):
                    await self.load(*key, "")
            except ModelNotFoundError:  # gone since
                del found[key]
            else:
                self._seen[key] = found[key]  # not before: what has not been tried is tried the next time
        for key in self._seen.keys() - found.keys():
            with suppress(ModelNotFoundError):  # it is not served
                await self.unload(*key)
            self._loads.pop(key, None)
            del self._seen[key]

    async def _find(self, name: str, version: str) -> ModelFile:
        files = [file for file in await asyncio.to_thread(find_models, self._settings.models) if file.name == name]
        chosen = [file for file in files if not version or file.version == version]
        if not chosen:
            known = ", ".join(file.version for file in files)
            raise ModelNotFoundError(
                f"the model repository has no {shown(name)}" + (f" {shown(version)}; it has {known}" if files else ""),
                model=name[:64],
                version=version[:64] or "latest",
            )
        return max(chosen, key=lambda file: version_key(file.version))

    async def _prepare(self, file: ModelFile, expected: str, *, tried: bool) -> Prepared:
        digest = await asyncio.to_thread(digest_of, file)
        if expected and digest != expected:
            refuse_if(f"{file.name} {file.version} in the repository is {digest}, not {shown(expected)}", file)
        for model in self._engine.models():
            if model.key == (file.name, file.version, digest):
                return Prepared(model, None)
        try:
            if not tried:
                async for why in rehearse_all(self._settings, [file]):
                    refuse_if(why, file)
            model, runtime, seconds = await asyncio.to_thread(self._make, file, digest)
        except ModelRefusedError:
            self._loads[file.name, file.version] = False
            raise
        return Prepared(model, (runtime, seconds))

    def _make(self, file: ModelFile, digest: str) -> tuple[ServedModel, OnnxRuntime, float]:
        """Load a version with this digest, and see how long a full batch takes.

        Raises:
            ModelRefusedError: It cannot be used, or is another by now.
        """
        try:
            settings = self._settings
            runtime, seconds = load_quickest(
                file.path,
                threads=settings.threads,
                processors=max(1, count_processors() // settings.workers),
                max_batch_size=settings.limits.max_batch_size,
                operators=settings.operators,
            )
            model = ServedModel(
                file.name,
                file.version,
                digest,
                runtime.signature,
                runtime,
                settings.limits,
                max_batch_size=1 if runtime.one_by_one else None,
                max_piece_steps=1 if runtime.fixed_steps else None,
                metrics=runtime.metrics,
            )
        except Exception as error:
            raise refusal(one_line(error), file) from None
        if digest_of(file) != digest:
            raise refusal("its files changed meanwhile; try again", file)
        return model, runtime, seconds

    def _serve(self, model: ServedModel, runtime: OnnxRuntime, seconds: float) -> ServedModel:
        self._loads[model.name, model.version] = True
        inline_work = model.max_batch_size * self._settings.inline_ms / (seconds * 1e3)
        served = self._driver.serve(model, self._executor, inline_work=inline_work)
        _log.info(
            "model_loaded",
            model=model.name,
            version=model.version,
            digest=model.digest[:19],
            state_bytes=model.signature.state_bytes,
            threads=f"{runtime.threads} from {runtime.threads_from} sessions on",
            full_batch_ms=round(seconds * 1e3, 3),
            runs_on_the_loop=f"up to {inline_work:.0f} time steps",
            sessions=served.sessions,  # where it comes back before they have ended
        )
        return served

    @staticmethod
    def _stamps(files: list[ModelFile]) -> dict[tuple[str, str], _Stamp]:
        return {(file.name, file.version): _stamp(file.path.parent) for file in files}


def _stamp(folder: Path) -> _Stamp:
    found = set()
    for path in folder.rglob("*"):
        try:
            stat = path.stat()
        except OSError:  # gone meanwhile
            continue
        found.add((str(path), stat.st_size, stat.st_mtime_ns))
    return frozenset(found)
