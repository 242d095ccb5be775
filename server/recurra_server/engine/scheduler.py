"""Which steps run next, and how many time steps of each."""

from collections import deque
from collections.abc import Sequence

from recurra_server.engine.accounts import Account
from recurra_server.engine.steps import Step

_APART = 60.0
"""Seconds for which a caller runs apart from others after the model refused something of theirs."""


class Line:
    """Ready steps that can share a model call: of one caller in the order they came, and of several by turns.

    So who sends much does not keep back who sends little (round robin; Nagle, "On Packet Switches with Infinite
    Storage", RFC 970, 1985).
    """

    __slots__ = ("_again", "_by_owner", "_length")

    def __init__(self) -> None:
        self._by_owner: dict[Account, deque[Step]] = {}
        self._again: deque[list[Step]] = deque()  # before all others, each in a call of its own
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def push(self, step: Step) -> None:
        """Put a step at the end of its caller's."""
        owner = step.session.owner
        steps = self._by_owner.get(owner)
        if steps is None:
            steps = self._by_owner[owner] = deque()
        steps.append(step)
        self._length += 1

    def put_back(self, parts: Sequence[list[Step]]) -> None:
        """Put the steps of a failed call in front of all others: each part is to run in a call of its own."""
        self._again.extendleft(reversed(parts))
        self._length += sum(map(len, parts))

    def leave(self, owner: Account) -> Sequence[Step]:
        """Take out all steps of a caller, but those that were put back."""
        steps = self._by_owner.pop(owner, ())
        self._length -= len(steps)
        return steps

    def take(self, limit: int) -> list[Step]:
        """Take up to so many, or a part that was put back."""
        by_owner = self._by_owner
        if self._again:
            taken = self._again.popleft()
        elif len(by_owner) == 1:
            (steps,) = by_owner.values()
            taken = [steps.popleft() for _ in range(min(limit, len(steps)))]
        else:
            taken = []
            while by_owner and len(taken) < limit:
                owner = next(iter(by_owner))
                steps = by_owner.pop(owner)
                if steps:
                    taken.append(steps.popleft())
                    by_owner[owner] = steps  # to the end
        self._length -= len(taken)
        return taken


class Scheduler:
    """Ready steps, at most one of a session, grouped by what a model call has once: time steps, constants, outputs.

    So who asks for no optional outputs does not wait for them to be computed for others.

    Only pieces of equal length can share a model call. A chunk is therefore run in pieces
    whose lengths are powers of two: few groups, so batches fill. Groups take turns, so neither
    long chunks nor single steps starve; within a group, so do callers, and of one caller who came first is first.

    A model may refuse some values, and then the whole call fails. Its steps are run again in halves, so that few calls
    tell whose fault it was; and for a while that caller's steps have lines of their own, so that what else they send
    slows down only themselves. (Not where callers are not told apart: there would be nobody else.)

    The idea of batching cells of different requests as they become ready is BatchMaker's
    (Gao et al., "Low Latency RNN Inference with Cellular Batching", EuroSys 2018).

    Attributes:
        apart: The callers who run apart from others, and until when; the soonest first.
    """

    def __init__(self, max_piece: int) -> None:
        self.apart: dict[Account, float] = {}
        self._max_piece = max_piece
        self._singles = Line()
        # In the order of their turns. The caller is None but of who runs apart.
        self._ready: dict[tuple[int, bytes, bool, Account | None], Line] = {(1, b"", False, None): self._singles}

    @property
    def has_ready(self) -> bool:
        """Whether any step is in line."""
        return any(self._ready.values())

    def push(self, step: Step) -> None:
        """Put a step (back) in line."""
        session = step.session
        if step.count == 1 and not session.group and not step.in_full and session.owner not in self.apart:
            self._singles.push(step)
        else:
            self._line(step, session.owner).push(step)

    def put_back(self, steps: Sequence[Step], now: float) -> None:
        """Put back the steps of a call that failed: they run again in two calls, in the next turn of their line."""
        owners = list(dict.fromkeys([step.session.owner for step in steps]))
        if len(owners) == 1:
            self.set_apart(owners[0], now)
            middle = (len(steps) + 1) // 2
            parts = [[*steps[:middle]], [*steps[middle:]]]
        else:
            first = set(owners[: len(owners) // 2])
            parts = [[step for step in steps if (step.session.owner in first) is one] for one in (True, False)]
        line = self._line(steps[0], owners[0] if len(owners) == 1 else None)
        line.put_back([part for part in parts if part])

    def set_apart(self, owner: Account, now: float) -> None:
        """Run a caller's steps apart from those of others from now on, for a while."""
        if not owner.key:
            return
        is_new = self.apart.pop(owner, None) is None
        self.apart[owner] = now + _APART
        if is_new:
            for step in [step for line in self._ready.values() for step in line.leave(owner)]:
                self.push(step)
            self._ready = {key: line for key, line in self._ready.items() if line or line is self._singles}

    def take(self, limit: int, now: float) -> tuple[list[Step], int]:
        """Take up to `limit` steps of the group whose turn it is, and the piece length they share.

        Returns:
            The steps and their common piece length; no steps where nothing is ready.
        """
        while self.apart and self.apart[first := next(iter(self.apart))] <= now:
            del self.apart[first]
        for key, line in self._ready.items():
            if line:
                steps = line.take(limit)
                if len(self._ready) > 1:
                    del self._ready[key]
                    if line or line is self._singles:
                        self._ready[key] = line  # to the end
                return steps, key[0]
        return [], 0

    def is_piece(self, steps: int) -> bool:
        """Whether so many time steps run in one model call."""
        return steps <= self._max_piece and steps & (steps - 1) == 0

    def piece_length(self, step: Step) -> int:
        """The number of time steps of this step that run in its next model call."""
        left = step.count - step.position
        return min(1 << (left.bit_length() - 1), self._max_piece)

    def _line(self, step: Step, owner: Account | None) -> Line:
        """The line of a step: of this caller, if that one runs apart, or with others."""
        apart = owner if owner in self.apart else None
        key = (self.piece_length(step), step.session.group, step.in_full, apart)
        line = self._ready.get(key)
        if line is None:
            line = self._ready[key] = Line()
        return line
