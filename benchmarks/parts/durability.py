"""What durable sessions cost: throughput, a step's latency, bytes, and a take-over beside many other checkpoints."""

import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import numpy as np
from recurra.v1 import sessions_pb2
from recurra_client.client import Client
from recurra_server.engine.ports import Checkpoint
from recurra_server.stores.embedded import EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore

from benchmarks import contenders
from benchmarks.client import Values, in_loop, load
from benchmarks.parts.bench import Bench
from benchmarks.processes import free_port

COST: Final = "durability"
TRIP: Final = "store round trip"
SIZE: Final = "checkpoint size"
TAKE_OVER: Final = "take-over"
KINDS: Final = {
    "EPHEMERAL": sessions_pb2.DURABILITY_EPHEMERAL,
    "ASYNC": sessions_pb2.DURABILITY_ASYNC,
    "SYNC": sessions_pb2.DURABILITY_SYNC,
}
SESSIONS: Final = (1, 64)
_TURN_SECONDS: Final = 0.5  # the kinds are measured in turns, so that what disturbs hits all alike
_TAKEN: Final = 200
_ASYNC: Final = 2  # the engine's number of it
_BATCH: Final = 256
_HEADER_BYTES: Final = 25  # that the store keeps beside a snapshot


def durability(bench: Bench) -> None:
    """Each kind of session on one server; the store's own round trip; take-over beside 10 and 100,000 checkpoints."""
    with _served(bench) as (target, pid, url):
        size = bench.client.run(_snapshot_size, target)
        bench.findings.add(SIZE, "LSTM-128", "a session", 0, size)
        for turn in range(bench.effort.rounds):
            for count in SESSIONS:
                _beside_one_another(bench, target, pid, count, turn)
                trip = bench.client.run(
                    _round_trip, url, count, int(size["checkpoint_bytes"]), bench.effort.seconds / 2
                )
                bench.findings.add(TRIP, "a bare store round trip", count, turn, trip)
    for count in (10, 2_000 if bench.effort.quick else 100_000):
        with _served(bench) as (target, _, url):
            for turn, values in enumerate(bench.client.run(_take_over, target, url, count, bench.effort.rounds)):
                bench.findings.add(TAKE_OVER, "recurra", count, turn, values)


@contextmanager
def _served(bench: Bench) -> Iterator[tuple[str, int, str]]:
    """A server with a Valkey of its own: its address, its process, and the URL of the store."""
    with tempfile.TemporaryDirectory() as folder:
        valkey = EmbeddedValkey(Path(folder))
        valkey.start()
        try:
            port = free_port()
            server = contenders.ours(bench.models, "lstm-128", "--store", valkey.url, "--max-sessions", "1000000")
            with server.running(port) as pid:
                yield f"127.0.0.1:{port}", pid, valkey.url
        finally:
            valkey.stop()


def _beside_one_another(bench: Bench, target: str, pid: int, count: int, turn: int) -> None:
    measured: dict[str, list[Values]] = {kind: [] for kind in KINDS}
    turns = max(1, round(bench.effort.seconds / _TURN_SECONDS))
    for _ in range(turns):
        for kind, number in KINDS.items():
            plan = {"api": "stream", "sessions": count, "durability": number, "warmup": 0.2}
            measured[kind].append(
                bench.client.run(load, target, pid, "lstm-128", **plan, seconds=bench.effort.seconds / turns)
            )
    for kind, parts in measured.items():
        values = {key: float(np.mean([part[key] for part in parts])) for key in parts[0]}
        bench.findings.add(COST, kind, count, turn, values)


# --- in the client's process ------------------------------------------------------------------


def _snapshot_size(target: str) -> Values:
    return in_loop(_measure_size(target))


async def _measure_size(target: str) -> Values:
    async with Client(target) as client:
        state = (await client.model("lstm-128")).state_bytes
        snapshot = await _snapshot(client)
    return {"state_bytes": float(state), "checkpoint_bytes": float(len(snapshot) + _HEADER_BYTES)}


async def _snapshot(client: Client) -> bytes:
    """Of a session that has stepped."""
    async with client.session("lstm-128", durability="ephemeral") as session:
        await session.step(np.ones(16))
        return await client.sessions.export(session.id)


def _round_trip(url: str, count: int, size: int, seconds: float) -> Values:
    return in_loop(_measure_round_trip(url, count, size, seconds))


async def _measure_round_trip(url: str, count: int, size: int, seconds: float) -> Values:
    """Saving the checkpoints of as many sessions at once, as the server does, with nothing round it."""
    times = []
    async with _store(url) as store:
        checkpoints = [_checkpoint(bytes(size - _HEADER_BYTES)) for _ in range(count)]
        end = time.perf_counter() + seconds
        while (began := time.perf_counter()) < end:
            await store.save(checkpoints)
            times.append(time.perf_counter() - began)
    p50, p99 = np.percentile(times, [50, 99])
    return {"p50": float(p50), "p99": float(p99)}


def _take_over(target: str, url: str, count: int, rounds: int) -> list[Values]:
    return in_loop(_measure_take_over(target, url, count, rounds))


async def _measure_take_over(target: str, url: str, count: int, rounds: int) -> list[Values]:
    """The first call for a session that only the store has, beside `count` others there."""
    async with Client(target) as client, _store(url) as store:
        snapshot = await _snapshot(client)
        for begin in range(0, count, _BATCH):
            await store.save([_checkpoint(snapshot) for _ in range(begin, min(begin + _BATCH, count))])
        found = []
        for _ in range(rounds):
            ours = [_checkpoint(snapshot) for _ in range(_TAKEN)]
            await store.save(ours)
            times = []
            for one in ours:
                began = time.perf_counter()
                await client.sessions.get(one.store_key)
                times.append(time.perf_counter() - began)
            p50, p99 = np.percentile(times, [50, 99])
            found.append({"p50": float(p50), "p99": float(p99)})
            for one in ours:
                await client.sessions.close(one.store_key)
    return found


def _checkpoint(snapshot: bytes) -> Checkpoint:
    epoch = int(time.time() * 1000)
    return Checkpoint(secrets.token_urlsafe(16), epoch, 1, _ASYNC, 3600.0, snapshot)


@asynccontextmanager
async def _store(url: str) -> AsyncIterator[ValkeyStore]:
    store = ValkeyStore(url)
    try:
        yield store
    finally:
        await store.close()
