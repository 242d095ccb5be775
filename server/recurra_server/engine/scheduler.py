"""Which steps run next, and how many time steps of each."""

from collections import deque

from recurra_server.engine.accounts import Account
from recurra_server.engine.steps import Step


class Line:
    """Ready steps that can share a model call: of one caller in the order they came, and of several by turns.

    So who sends much does not keep back who sends little (round robin; Nagle, "On Packet Switches with Infinite
    Storage", RFC 970, 1985).
    """

    __slots__ = ("_by_owner", "_length")

    def __init__(self) -> None:
        self._by_owner: dict[Account, deque[Step]] = {}
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

    def take(self, limit: int) -> list[Step]:
        """Take up to so many."""
        by_owner = self._by_owner
        if len(by_owner) == 1:
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

    The idea of batching cells of different requests as they become ready is BatchMaker's
    (Gao et al., "Low Latency RNN Inference with Cellular Batching", EuroSys 2018).
    """

    def __init__(self, max_piece: int) -> None:
        self._max_piece = max_piece
        self._singles = Line()
        self._ready = {(1, b"", False): self._singles}  # in the order of their turns

    @property
    def has_ready(self) -> bool:
        """Whether any step is in line."""
        return any(self._ready.values())

    def push(self, step: Step) -> None:
        """Put a step (back) in line."""
        group = step.session.group
        if step.count == 1 and not group and not step.in_full:
            self._singles.push(step)
        else:
            self._ready.setdefault((self.piece_length(step), group, step.in_full), Line()).push(step)

    def take(self, limit: int) -> tuple[list[Step], int]:
        """Take up to `limit` steps of the group whose turn it is, and the piece length they share.

        Returns:
            The steps and their common piece length; no steps where nothing is ready.
        """
        for key, line in self._ready.items():
            if line:
                if len(self._ready) > 1:
                    del self._ready[key]
                    if line is self._singles or len(line) > limit:
                        self._ready[key] = line  # to the end
                return line.take(limit), key[0]
        return [], 0

    def is_piece(self, steps: int) -> bool:
        """Whether so many time steps run in one model call."""
        return steps <= self._max_piece and steps & (steps - 1) == 0

    def piece_length(self, step: Step) -> int:
        """The number of time steps of this step that run in its next model call."""
        left = step.count - step.position
        return min(1 << (left.bit_length() - 1), self._max_piece)
