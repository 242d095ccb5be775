"""Streaming feeds through sessions, and showing how they go."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field

from recurra.v1 import models_pb2
from rich.console import Console, Group, RenderableType
from rich.live import Live

from recurra_client.cli.feeds import Feed, Row
from recurra_client.cli.gates import NAMES, GateTrack
from recurra_client.cli.gates_view import gates_view
from recurra_client.cli.predictions import PredictionsWriter
from recurra_client.cli.track import Reading, Track
from recurra_client.cli.view import live_view, parallel_view, print_line, summary_table
from recurra_client.client import Client
from recurra_client.durability import Durability
from recurra_client.feed import stack
from recurra_client.session import Session

FRAMES_A_SECOND = 8


@dataclass(frozen=True, slots=True)
class Pace:
    """How steps are sent."""

    chunk: int = 1
    """Steps in one message."""
    period: float = 0.0
    """Seconds from one step to the next; 0: as soon as the one before is answered."""
    limit: int | None = None
    """The most steps of one feed."""
    parallel: bool = False
    """All feeds at once, rather than one after another."""


@dataclass(slots=True)
class Follower:
    """Streams feeds through one session each; on a terminal, it shows them live."""

    client: Client
    model: models_pb2.Model
    feeds: list[Feed]
    pace: Pace
    out: Console
    writer: PredictionsWriter | None = None
    gate_units: int = 0
    """Units whose gates are followed; 0: none are."""
    durability: Durability = ""
    session_id: str = ""
    """The open session to go on with; empty: a new one for each feed."""
    gates: list[GateTrack] = field(init=False)
    tracks: list[Track] = field(init=False)
    _current: int = 0
    _began: float = field(default_factory=time.monotonic)
    _screen: Live | None = None
    _next_frame: float = 0.0

    def __post_init__(self) -> None:
        """Begin an empty track for each feed."""
        reading, limit = Reading(self.model), self.pace.limit
        self.tracks = [
            Track(feed.name, reading, feed.total if feed.total is None or limit is None else min(feed.total, limit))
            for feed in self.feeds
        ]
        self.gates = [GateTrack(self.gate_units) for _ in self.feeds] if self.gate_units else []

    async def run(self) -> None:
        """Stream all feeds, and end with a table of how they went: also of those that were interrupted."""
        try:
            with self._live() if self.out.is_terminal else contextlib.nullcontext():
                if self.pace.parallel:
                    await self._run_parallel()
                else:
                    for index in range(len(self.feeds)):
                        self._current = index
                        await self._run_one(index)
        finally:
            if any(track.steps for track in self.tracks):
                self.out.print(summary_table(self.tracks, time.monotonic() - self._began))

    async def _run_parallel(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for index in range(len(self.feeds)):
                    group.create_task(self._run_one(index))
        except ExceptionGroup as failures:  # the first is what ended the others
            raise failures.exceptions[0] from None

    async def _run_one(self, index: int) -> None:
        track = self.tracks[index]
        async with self._session((track.reading.output, *NAMES) if self.gates else ()) as session:
            due = time.monotonic()
            async for rows in _chunks(self.feeds[index].rows, self.pace):
                if self.pace.period:
                    await asyncio.sleep(due - time.monotonic())
                    due += self.pace.period * len(rows)
                inputs = [row.inputs for row in rows]
                answers = await (session.step(inputs[0]) if self.pace.chunk == 1 else session.steps(stack(inputs)))
                outputs = track.reading.rows(answers[track.reading.output], len(rows))
                if self.writer is not None:
                    truths = [row.truth for row in rows]
                    self.writer.write(
                        track.name, session.last.step - len(rows) + 1, outputs, truths, session.last.latency
                    )
                if self.gates:
                    self.gates[index].add(answers, len(rows))
                track.add(outputs, [track.reading.truth(row.truth) for row in rows], session.last)
                self._refresh()
        if not self.out.is_terminal:
            print_line(self.out, track)

    def _session(self, outputs: Sequence[str]) -> Session:
        if self.session_id:
            return self.client.resume(self.session_id, outputs=outputs)
        return self.client.session(
            self.model.name, version=self.model.version, durability=self.durability, outputs=outputs
        )

    @contextlib.contextmanager
    def _live(self) -> Iterator[None]:
        with Live(console=self.out, get_renderable=self._view, auto_refresh=False) as self._screen:
            yield
            self._screen.refresh()

    def _refresh(self) -> None:
        """Draw the next frame if it is due: between two steps, so that drawing is not counted as latency."""
        now = time.monotonic()
        if self._screen is not None and now >= self._next_frame:
            self._screen.refresh()
            self._next_frame = now + 1 / FRAMES_A_SECOND

    def _view(self) -> RenderableType:
        rate = sum(track.steps for track in self.tracks) / max(time.monotonic() - self._began, 1e-9)
        if self.pace.parallel and len(self.tracks) > 1:
            return parallel_view(self.model, self.tracks, rate, self.out.width)
        view = live_view(self.model, self.tracks[self._current], rate, self.out.width)
        if not self.gates:
            return view
        left = self.out.height - len(self.out.render_lines(view, pad=False)) - 1
        return Group(view, gates_view(self.gates[self._current], min(self.out.width, 110) - 2, left))


async def _chunks(rows: AsyncIterator[Row], pace: Pace) -> AsyncIterator[list[Row]]:
    """The rows in messages of `pace.chunk` steps (the last may be shorter), up to `pace.limit` steps."""
    chunk: list[Row] = []
    left = pace.limit
    async for row in rows:
        chunk.append(row)
        if left is not None:
            left -= 1
        if len(chunk) == pace.chunk or left == 0:
            yield chunk
            chunk = []
        if left == 0:
            return
    if chunk:
        yield chunk
