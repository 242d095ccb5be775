"""Where the sessions of a model live: one array for each thing kept of them, a slot per session."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from recurra_server.engine.signature import Kept

Owner = TypeVar("Owner")
Array = NDArray[Any]
# Rows of a table: one as a slice, which needs no copy; several by index.
Slots = NDArray[np.intp] | slice


def rows_of(slots: Sequence[int]) -> Slots:
    """The rows that these slots are."""
    return slice(slots[0], slots[0] + 1) if len(slots) == 1 else np.array(slots, np.intp)


def _stamp_of(specs: Sequence[Kept]) -> bytes:
    layout = "\n".join(f"{spec.name}\t{spec.dtype}\t{list(spec.dims)}\t{spec.constant}" for spec in specs)
    return hashlib.sha256(layout.encode()).digest()


class SlotTable(Generic[Owner]):
    """Arrays `[capacity, *dims]`; a batch is gathered and scattered by index.

    Address space is reserved for all sessions that there may be, and memory is only taken by slots that were
    written to: so nothing is ever moved while callers wait. Where even that cannot be had, the arrays begin smaller and
    grow by doubling.

    When a session was last used is a column too, so that a batch touches all its sessions with
    one operation and a sweep finds the expired ones with another: no session has a timer.

    Attributes:
        stamp: Hash of how a slot is laid out: two that are equal hold the same bytes in the same places.
        row_bytes: Bytes of a slot.
    """

    def __init__(self, specs: Sequence[Kept], capacity: int) -> None:
        self.specs = tuple(specs)
        self.stamp = _stamp_of(self.specs)
        self.row_bytes = sum(spec.row_bytes for spec in self.specs)
        self.owners: list[Owner | None] = []  # as many as there are slots that were handed out at least once
        self.last_used: Array
        self.idle_timeout: Array
        self._tables: list[Array]
        self._free: list[int] = []
        while True:
            try:
                self._reserve(capacity)
            except MemoryError:
                if capacity == 1:
                    raise
                capacity //= 2
            else:
                return

    @property
    def capacity(self) -> int:
        """Number of slots that there is address space for."""
        return len(self.last_used)

    @property
    def in_use(self) -> int:
        """Number of slots handed out."""
        return len(self.owners) - len(self._free)

    @property
    def nbytes(self) -> int:
        """Bytes that states take or have taken; they are kept for the sessions to come."""
        return len(self.owners) * self.row_bytes

    def allocate(self) -> int:
        """Hand out a slot. Its states are whatever its last owner left; nobody owns it and it does not expire."""
        if self._free:
            return self._free.pop()
        slot = len(self.owners)
        if slot == self.capacity:
            self._reserve(2 * slot)
        self.idle_timeout[slot] = np.inf
        self.owners.append(None)
        return slot

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

    def any_expired(self, slots: Sequence[int], now: float) -> bool:
        """Whether the time of any session in these slots is up."""
        rows = np.array(slots, np.intp)
        return bool((self.last_used[rows] + self.idle_timeout[rows] <= now).any())

    def expired(self, now: float) -> list[Owner]:
        """Find the sessions whose time is up."""
        used = len(self.owners)
        due = np.flatnonzero(self.last_used[:used] + self.idle_timeout[:used] <= now).tolist()
        return [owner for slot in due if (owner := self.owners[slot]) is not None]

    def begin(self, slot: int, given: Mapping[str, Array]) -> None:
        """Set a slot to what is given, each `[*dims]` by its name, and the rest of it to its initial values."""
        for spec, table in zip(self.specs, self._tables, strict=True):
            table[slot] = given.get(spec.name, spec.initial)

    def reset(self, slot: int) -> None:
        """Put a slot's states to their initial values; constants stay."""
        for spec, table in zip(self.specs, self._tables, strict=True):
            if not spec.constant:
                table[slot] = spec.initial

    def read(self, slot: int) -> dict[str, Array]:
        """Copy what a slot holds, each `[*dims]` by its name."""
        return {spec.name: table[slot].copy() for spec, table in zip(self.specs, self._tables, strict=True)}

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

    def _reserve(self, capacity: int) -> None:
        """Set so many slots aside, and keep what there is.

        Raises:
            MemoryError: There is no room; nothing has changed.
        """
        used = len(self.owners)
        # Zeroed pages are backed by memory only once they are written to.
        columns = [np.zeros(capacity) for _ in range(2)]
        tables = [np.zeros((capacity, *spec.dims), spec.np_dtype) for spec in self.specs]
        if used:
            for larger, column in zip(columns, (self.last_used, self.idle_timeout), strict=True):
                larger[:used] = column
            for larger, table in zip(tables, self._tables, strict=True):
                larger[:used] = table
        self.last_used, self.idle_timeout = columns
        self._tables = tables
