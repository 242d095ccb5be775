"""Several server processes on one port, and the one that keeps them: it starts them anew should they die or get stuck.

The kernel gives each new connection to one of them (SO_REUSEPORT). Each has its own sessions and bounds; they share the
store, if there is one. They serve the same models: what a call changes in one is changed in all (`shared_catalog`).
"""

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

import structlog

from recurra_server.app import export
from recurra_server.chores import Chores
from recurra_server.engine.accounts import Accounts
from recurra_server.engine.errors import one_line, shown
from recurra_server.liveness import watch
from recurra_server.peer import LONGEST_LINE, Peer
from recurra_server.runtimes.repository import find_models
from recurra_server.screening import log_if_refused, refuse_if, screen
from recurra_server.settings import Settings
from recurra_server.shared_catalog import Changes
from recurra_server.starting import StartError, read_access, read_certificates
from recurra_server.telemetry.exporter import Exporter, on_loop
from recurra_server.telemetry.merged import MergedMetrics
from recurra_server.worker import BEGIN, GOES_ON, READY, Begin, Ready

_log = structlog.get_logger(__name__)
_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 30.0
_LIVED_WELL = 60.0  # seconds after which a death is no longer one of a row
_STUCK = 60.0  # seconds
_TOLD_TO_END = "told to end before it served"


@dataclass(slots=True)
class _Worker:
    """A running worker; `listening` to what it asks ends when it does."""

    process: asyncio.subprocess.Process
    ready: Ready
    listening: asyncio.Future[None] | None = None

    def end(self) -> None:
        """Ask it to drain; asked again, it hurries."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it whatever it does."""
        self._send(signal.SIGKILL)

    def _send(self, number: int) -> None:
        # Not through `process`, which looks first whether it has ended, and takes the status from whoever waits for it.
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Workers:
    """Keeps `settings.workers` servers running until SIGTERM or SIGINT; a second signal hurries them.

    Args:
        settings: How to serve.
        stuck: Seconds after which one that does not answer gives its place to another. None: a minute, or as many as a
            model may take to be loaded.

    Raises:
        StartError: The port is taken or not allowed.
    """

    def __init__(self, settings: Settings, *, stuck: float | None = None) -> None:
        self._reserved = _reserve(settings.host, settings.port)
        self._settings = settings
        port: int = self._reserved.getsockname()[1]
        self._each = replace(settings, port=port, metrics_port=0)
        self._running: dict[int, _Worker] = {}
        self._ending = asyncio.Event()
        self._merged = MergedMetrics()
        self._changes = Changes()
        self._chores = Chores()
        self._patience = max(_STUCK, settings.load_seconds) if stuck is None else stuck

    async def run(self, ready: Callable[[Ready], None]) -> None:
        """Serve; `ready` is called once all workers do.

        Raises:
            StartError: A worker cannot serve.
        """
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        exporter = None
        try:
            self._trying = asyncio.ensure_future(self._try_models())
            await self._trying
            async with self._changes.one_at_a_time, asyncio.TaskGroup() as group:
                count = self._settings.workers
                firsts = [group.create_task(self._start(place, at_once=count)) for place in range(count)]
            self._chores.begin(lambda: watch(self._changes.members, self._patience, self._kill))
            if self._settings.metrics:
                exporter = self._export()
            first = firsts[0].result().ready
            ready(replace(first, metrics_port=exporter.port if exporter is not None else 0))
            await asyncio.gather(*(self._keep(place, task.result()) for place, task in enumerate(firsts)))
        except* StartError as errors:
            raise errors.exceptions[0] from None
        except* asyncio.CancelledError:
            raise StartError(_TOLD_TO_END) from None
        finally:
            for worker in self._running.values():
                worker.end()
            await asyncio.gather(*(worker.process.wait() for worker in self._running.values()))
            if exporter is not None:
                await asyncio.to_thread(exporter.close)
            await self._chores.end()
            self._reserved.close()

    def _export(self) -> Exporter:
        settings, access = self._settings, read_access(self._settings, Accounts())
        if access is not None:
            self._chores.begin(access.keep_current, access.keep_keys)
        running = on_loop(lambda: "" if self._running else "no worker runs")
        return export(
            self._merged.registry,
            lambda: running() or self._merged.unhealthy(),
            self._merged.unready,
            settings.host,
            settings.metrics_port,
            None if access is None else access.may_read_metrics,
            read_certificates(settings),
        )

    async def _try_models(self) -> None:
        """Try the models once for all workers."""
        async for file, digest, why in screen(self._settings, find_models(self._settings.models)):
            self._changes.verdicts[file.name, file.version, digest] = why
            with log_if_refused(file):
                refuse_if(why, file)

    def _end(self) -> None:
        self._ending.set()
        self._trying.cancel()
        for worker in self._running.values():
            worker.end()

    def _kill(self, place: int) -> None:
        """A worker is stuck: end it, so that another takes its place."""
        _log.error("worker_stuck", worker=place, seconds=self._patience)
        self._running[place].kill()

    async def _keep(self, place: int, worker: _Worker) -> None:
        """Start a worker anew whenever it dies, after longer pauses the oftener it does."""
        pause = _FIRST_PAUSE
        while True:
            began = time.monotonic()
            status = await worker.process.wait()
            self._forget(place)
            if self._ending.is_set():
                return
            _log.error("worker_died", worker=place, status=status, again_in_seconds=pause)
            if time.monotonic() - began > _LIVED_WELL:
                pause = _FIRST_PAUSE
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ending.wait(), pause)
            if self._ending.is_set():
                return
            pause = min(2 * pause, _LONGEST_PAUSE)
            try:
                async with self._changes.one_at_a_time:
                    worker = await self._start(place)
            except Exception as error:  # whatever it is: the other workers are well
                if not self._ending.is_set():
                    unknown = not isinstance(error, StartError)
                    _log.error("worker_not_started", worker=place, why=one_line(error), exc_info=unknown)

    async def _start(self, place: int, *, at_once: int = 1) -> _Worker:
        """Start a worker, one of so many at once, and wait until it serves.

        Raises:
            StartError: It cannot, or is not to any more; nothing is left of it.
        """
        process = await _spawn()
        self._running[place] = worker = _Worker(process, Ready())
        try:
            if self._ending.is_set():  # there was no process yet to be told
                raise StartError(_TOLD_TO_END)
            # Between two words it tries a model, loads it, loads it with more threads, and times it.
            await self._begin(place, worker, self._patience + 4 * self._settings.load_seconds * at_once)
        except Exception:
            worker.kill()
            await process.wait()
            self._forget(place)
            raise
        return worker

    async def _begin(self, place: int, worker: _Worker, patience: float) -> None:
        """Tell a worker how to begin, and take it in once it serves.

        Raises:
            StartError: It cannot, or says nothing for so many seconds.
        """
        to_it, from_it = worker.process.stdin, worker.process.stdout
        assert to_it is not None  # noqa: S101 - they are pipes
        assert from_it is not None  # noqa: S101
        begin = Begin(self._each, sorted(self._changes.left_out), list(self._changes.verdicts.items()))
        to_it.write(BEGIN.dump_json(begin) + b"\n")
        worker.ready = await _hear(from_it, patience)
        if worker.ready.error:
            raise StartError(worker.ready.error)
        if worker.ready.metrics_port:
            self._merged.add(place, worker.ready.metrics_port)
        peer = Peer(from_it, to_it.write)
        self._changes.add(place, peer)
        worker.listening = asyncio.ensure_future(peer.listen())
        # One that is not understood takes part in no more changes: it is to end, so that another takes its place.
        worker.listening.add_done_callback(lambda _: to_it.close())

    def _forget(self, place: int) -> None:
        self._running.pop(place, None)
        self._merged.remove(place)
        self._changes.members.pop(place, None)


async def _spawn() -> asyncio.subprocess.Process:
    """A process that waits to be told how to begin.

    Raises:
        StartError: The system has no room for it.
    """
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "recurra_server.worker",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
            start_new_session=True,  # Ctrl-C is for us alone: a worker that is told twice hurries
        )
    except (OSError, RuntimeError) as error:  # no process, no file, or no thread that waits for its end
        raise StartError(f"a worker cannot be started: {one_line(error)}") from None


async def _hear(lines: asyncio.StreamReader, patience: float) -> Ready:
    """What a worker says when it has begun; that it cannot, where it says something else or is silent for too long.

    Args:
        lines: What it says.
        patience: Seconds in which it says something, if only that it goes on: with many models it may take hours.
    """
    line, now = b"", asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(patience) as limit:
            while (line := await lines.readline()) == GOES_ON:
                limit.reschedule(now() + patience)
        return READY.validate_json(line) if line else Ready(error="a worker ended before it served")
    except TimeoutError:
        return Ready(error=f"a worker that was to begin has said nothing for {patience:g} s")
    except ValueError:  # it is none of these, or does not end
        said = shown(line.decode(errors="replace").strip())
        return Ready(error=f"a worker said {said}, and not whether it serves")


def _reserve(host: str, port: int) -> socket.socket:
    """Hold a port that the workers share: bound, not listening, so no connection comes here.

    Raises:
        StartError: It is taken or not allowed.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
        with socket.socket(family, kind) as alone:  # without SO_REUSEPORT: nobody else is to have it
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind(address)
            address = alone.getsockname()
        shared = socket.socket(family, kind)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind(address)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}; choose --port") from None
    return shared
