"""What is served: loaded from the model repository, replaced and unloaded while the server runs.

A model is loaded and tried before it takes anybody's place: one that cannot be used changes nothing. Sessions stay on
the model they began with until they end.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from recurra_server.driver import Driver
from recurra_server.engine.errors import ModelNotFoundError, ModelRefusedError, shown
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.shelf import version_key
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.quickest import count_processors, load_quickest
from recurra_server.runtimes.repository import ModelFile, find_models
from recurra_server.settings import Settings

_log = structlog.get_logger(__name__)
# What a version's folder looked like: path, size and time of change of each file.
_Stamp = frozenset[tuple[str, int, int]]


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

    def load_all(self) -> int:
        """Load every version before the server starts; what cannot be loaded is logged.

        Returns:
            How many there are in the repository.
        """
        files = find_models(self._settings.models)
        self._seen = self._stamps(files)
        for file in files:
            try:
                self._serve(*self._make(file))
            except ModelRefusedError as error:
                self._loads[file.name, file.version] = False
                _refused(file, error)
        return len(files)

    async def load(self, name: str, version: str, digest: str) -> tuple[ServedModel, bool]:
        """Load a version, without one the latest, and hold it against a digest if one is given.

        Returns:
            What is served now, and whether that is new.

        Raises:
            ModelNotFoundError: The repository has no such version.
            ModelRefusedError: It cannot be loaded, or has another digest; what was served goes on.
        """
        files = [file for file in await asyncio.to_thread(find_models, self._settings.models) if file.name == name]
        chosen = [file for file in files if not version or file.version == version]
        if not chosen:
            known = ", ".join(file.version for file in files)
            raise ModelNotFoundError(
                f"the model repository has no {shown(name)}" + (f" {shown(version)}; it has {known}" if files else ""),
                model=name[:64],
                version=version[:64] or "latest",
            )
        return await self._load(max(chosen, key=lambda file: version_key(file.version)), digest)

    async def unload(self, name: str, version: str) -> list[ServedModel]:
        """Serve a version, without one all versions, to no new sessions.

        Raises:
            ModelNotFoundError: It is not served.
        """
        latest = self._engine.model(name, version)
        models = [latest] if version else [model for model in self._engine.models() if model.name == name]
        for model in models:
            self._engine.shelf.remove(model)
            _log.info("model_unloaded", model=name, version=model.version, sessions=model.sessions)
            await self._tell_health(f"{name}/{model.version}", False)
        await self._tell_health(name, any(model.name == name for model in self._engine.models()))
        return models

    async def tell_health_of_all(self) -> None:
        """Say of every version whether it is served."""
        served = {(model.name, model.version) for model in self._engine.models()}
        for name, version in self._seen.keys() | served:
            await self._tell_health(f"{name}/{version}", (name, version) in served)
            await self._tell_health(name, any(name == other for other, _ in served))

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
        before, self._seen = self._seen, await asyncio.to_thread(self._stamps, files)
        for file in files:
            if self._seen[file.name, file.version] != before.get((file.name, file.version)):
                try:
                    await self._load(file, "")
                except ModelRefusedError as error:
                    _refused(file, error)
        served = {(model.name, model.version) for model in self._engine.models()}
        for name, version in before.keys() - self._seen.keys():
            self._loads.pop((name, version), None)
            if (name, version) in served:
                await self.unload(name, version)

    async def _load(self, file: ModelFile, expected: str) -> tuple[ServedModel, bool]:
        async with self._one_at_a_time:
            digest = await asyncio.to_thread(file.digest)
            if expected and digest != expected:
                raise ModelRefusedError(
                    f"{file.name} {file.version} in the repository is {digest}, not {shown(expected)}",
                    model=file.name,
                    version=file.version,
                )
            served = [m for m in self._engine.models() if m.key == (file.name, file.version, digest)]
            if served:
                self._loads[file.name, file.version] = True
                return served[0], False
            try:
                await self._rehearse(file)
                made = await asyncio.to_thread(self._make, file)
            except ModelRefusedError:
                self._loads[file.name, file.version] = False
                is_served = any(m.key[:2] == (file.name, file.version) for m in self._engine.models())
                await self._tell_health(f"{file.name}/{file.version}", is_served)
                raise
            self._serve(*made)
            await self._tell_health(f"{file.name}/{file.version}", True)
            await self._tell_health(file.name, True)
            return made[0], True

    async def _rehearse(self, file: ModelFile) -> None:
        """Try a version in a process of its own, as a hostile or broken one may crash it, or never end.

        Raises:
            ModelRefusedError: It cannot be used.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "recurra_server.runtimes.probe"),
            *(str(file.path), str(self._settings.limits.max_batch_size)),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            _, said = await asyncio.wait_for(process.communicate(), self._settings.load_seconds)
            why = (said.decode(errors="replace").splitlines() or ["nothing"])[-1]
        except TimeoutError:
            why = f"it took more than {self._settings.load_seconds:g} s to be loaded and tried"
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            crashed = process.returncode < 0 and not why.startswith("it took")
            why = f"the process that tried it died of signal {-process.returncode}" if crashed else why
            raise ModelRefusedError(why, model=file.name, version=file.version)

    def _make(self, file: ModelFile) -> tuple[ServedModel, OnnxRuntime, float]:
        """Load a version and try it: the model, what runs it, and the seconds that a full batch takes.

        Raises:
            ModelRefusedError: It cannot be used.
        """
        try:
            digest = file.digest()
            settings = self._settings
            runtime, seconds = load_quickest(
                file.path,
                threads=settings.threads,
                processors=max(1, count_processors() // settings.workers),
                max_batch_size=settings.limits.max_batch_size,
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
            changed = file.digest() != digest
        except Exception as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelRefusedError(why[:500], model=file.name, version=file.version) from None
        if changed:
            raise ModelRefusedError("its files changed meanwhile; try again", model=file.name, version=file.version)
        return model, runtime, seconds

    def _serve(self, model: ServedModel, runtime: OnnxRuntime, seconds: float) -> None:
        self._loads[model.name, model.version] = True
        inline_work = model.max_batch_size * self._settings.inline_ms / (seconds * 1e3)
        self._driver.serve(model, self._executor, inline_work=inline_work)
        _log.info(
            "model_loaded",
            model=model.name,
            version=model.version,
            digest=model.digest[:19],
            state_bytes=model.signature.state_bytes,
            threads=f"{runtime.threads} from {runtime.threads_from} sessions on",
            full_batch_ms=round(seconds * 1e3, 3),
            runs_on_the_loop=f"up to {inline_work:.0f} time steps",
        )

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


def _refused(file: ModelFile, error: ModelRefusedError) -> None:
    _log.error("model_not_loaded", model=file.name, version=file.version, why=error.message)
