"""A store of checkpoints in this process, without anything to start."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from recurra_server.engine.ports import Checkpoint


@dataclass(slots=True)
class _Entry:
    """What is kept of a session; its `checkpoint` has no snapshot where it was deleted."""

    checkpoint: Checkpoint
    forgotten_at: float


class MemoryStore:
    """A full `SessionStore` that ends with its process.

    Args:
        clock: Seconds since 1970: new epochs are made of it, and entries expire by it.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._entries: dict[str, _Entry] = {}

    async def create(self, checkpoint: Checkpoint) -> int | None:
        """Keep the first checkpoint of a new session."""
        before = self._find(checkpoint.store_key)
        if before is not None and before.snapshot:
            return None
        self._keep(first := replace(checkpoint, epoch=self._next_epoch(before)))
        return first.epoch

    async def save(self, checkpoints: Sequence[Checkpoint]) -> list[bool]:
        """Keep newer checkpoints."""
        return [self._save(checkpoint) for checkpoint in checkpoints]

    async def take_over(self, store_key: str) -> Checkpoint | None:
        """Raise a session's epoch and read it."""
        found = self._find(store_key)
        if found is None or not found.snapshot:
            return None
        taken = replace(found, epoch=self._next_epoch(found))
        self._keep(taken)
        return taken

    async def delete(self, sessions: Sequence[tuple[str, int, float]]) -> None:
        """Forget sessions."""
        for store_key, epoch, remember in sessions:
            found = self._find(store_key)
            if found is None or found.epoch <= epoch:
                self._keep(Checkpoint(store_key, epoch + 1, 0, 0, remember, b""))

    async def identity(self) -> str:
        """Always the same."""
        return "memory"

    async def close(self) -> None:
        """Nothing is held open."""

    def _next_epoch(self, before: Checkpoint | None) -> int:
        return max(math.floor(self._clock() * 1000), 0 if before is None else before.epoch + 1)

    def _save(self, checkpoint: Checkpoint) -> bool:
        found = self._find(checkpoint.store_key)
        if found is not None and found.epoch > checkpoint.epoch:
            return False
        if found is None or (found.epoch, found.revision) <= (checkpoint.epoch, checkpoint.revision):
            self._keep(checkpoint)
        return True

    def _keep(self, checkpoint: Checkpoint) -> None:
        self._entries[checkpoint.store_key] = _Entry(checkpoint, self._clock() + checkpoint.idle_timeout)

    def _find(self, store_key: str) -> Checkpoint | None:
        entry = self._entries.get(store_key)
        if entry is None:
            return None
        if entry.forgotten_at <= self._clock():
            del self._entries[store_key]
            return None
        return entry.checkpoint
