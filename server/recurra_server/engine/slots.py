"""Where the sessions of a model live: one array per state tensor, a slot per session."""

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.signature import StateSpec

Owner = TypeVar("Owner")
Array = NDArray[Any]
# Rows of a table: one as a slice, which needs no copy; several by index.
Slots = NDArray[np.intp] | slice


def rows_of(slots: Sequence[int]) -> Slots:
    """The rows that these slots are."""
    return slice(slots[0], slots[0] + 1) if len(slots) == 1 else np.array(slots, np.intp)


class SlotTable(Generic[Owner]):
    """State arrays `[capacity, *dims]`, grown by doubling; a batch is gathered and scattered by index.

    When a session was last used is a column too, so that a batch touches all its sessions with
    one operation and a sweep finds the expired ones with another: no session has a timer.
    """

    def __init__(self, specs: Sequence[StateSpec], capacity: int = 64) -> None:
        self.specs = tuple(specs)
        self.owners: list[Owner | None] = [None] * capacity
        self.last_used = np.zeros(capacity)
        self.idle_timeout = np.full(capacity, np.inf)
        self._tables = [np.zeros((capacity, *spec.dims), spec.np_dtype) for spec in specs]
        self._free: list[int] = []
        self._used = 0  # slots below this were handed out at least once

    @property
    def capacity(self) -> int:
        """Number of slots that memory is set aside for."""
        return len(self.owners)

    @property
    def in_use(self) -> int:
        """Number of slots handed out."""
        return self._used - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes set aside for states."""
        return sum(table.nbytes for table in self._tables)

    def allocate(self) -> int:
        """Hand out a slot. Its states are whatever its last owner left; nobody owns it and it does not expire."""
        if self._free:
            return self._free.pop()
        if self._used == self.capacity:
            self._grow()
        self._used += 1
        return self._used - 1

    def release(self, slot: int) -> None:
        """Take a slot back; whoever held it must not use it again."""
        self.owners[slot] = None
        self.idle_timeout[slot] = np.inf
        self._free.append(slot)

    def settle(self, slot: int, owner: Owner, idle_timeout: float, now: float) -> None:
        """Make a slot the home of a session, which expires when it is not touched for `idle_timeout` seconds."""
        self.owners[slot] = owner
        self.idle_timeout[slot] = idle_timeout
        self.last_used[slot] = now

    def move(self, source: int, target: int) -> None:
        """Make `target` the home of the session that lived in `source`, which is released."""
        self.owners[target] = self.owners[source]
        self.idle_timeout[target] = self.idle_timeout[source]
        self.last_used[target] = self.last_used[source]
        self.release(source)

    def touch(self, slots: Slots | int, now: float) -> None:
        """Note that the sessions in these slots are in use."""
        self.last_used[slots] = now

    def expires_at(self, slot: int) -> float:
        """When the session in this slot expires if it is not used."""
        return float(self.last_used[slot] + self.idle_timeout[slot])

    def expired(self, now: float) -> list[Owner]:
        """Find the sessions whose time is up."""
        due = np.flatnonzero(self.last_used + self.idle_timeout <= now).tolist()
        return [owner for slot in due if (owner := self.owners[slot]) is not None]

    def reset(self, slot: int) -> None:
        """Put a slot's states to their initial values."""
        for spec, table in zip(self.specs, self._tables, strict=True):
            table[slot] = spec.initial

    def read(self, slot: int) -> list[Array]:
        """Copy a slot's states, each `[*dims]`."""
        return [table[slot].copy() for table in self._tables]

    def write(self, slot: int, states: Sequence[Array | None]) -> None:
        """Set a slot's states, each `[*dims]`; None leaves that state as it is."""
        for table, state in zip(self._tables, states, strict=True):
            if state is not None:
                table[slot] = state

    def gather(self, slots: Slots, rows: Sequence[Array]) -> None:
        """Copy the states of these slots to rows `[B, *dims]`."""
        for table, states in zip(self._tables, rows, strict=True):
            if isinstance(slots, slice):
                states[...] = table[slots]
            else:  # "clip" checks no bounds, and so copies straight to its end
                table.take(slots, axis=0, out=states, mode="clip")

    def scatter(self, slots: Slots, rows: Sequence[Array]) -> None:
        """Set the states of these slots from rows `[B, *dims]`."""
        for table, states in zip(self._tables, rows, strict=True):
            table[slots] = states

    def _grow(self) -> None:
        # Zeroed pages are backed by memory only once they are written to, so doubling
        # reserves more address space than memory.
        # All are made before any is put to use, lest a lack of memory leaves some behind.
        old = self.capacity
        tables = [np.zeros((2 * old, *table.shape[1:]), table.dtype) for table in self._tables]
        for larger, table in zip(tables, self._tables, strict=True):
            larger[:old] = table
        last_used = np.concatenate([self.last_used, np.zeros(old)])
        idle_timeout = np.concatenate([self.idle_timeout, np.full(old, np.inf)])
        self.owners.extend([None] * old)
        self._tables, self.last_used, self.idle_timeout = tables, last_used, idle_timeout
