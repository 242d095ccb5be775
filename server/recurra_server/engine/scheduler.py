"""Which steps run next, and how many time steps of each."""

from collections import deque

from recurra_server.engine.steps import Step


class Scheduler:
    """Ready steps, at most one of a session, grouped by what a model call has once: time steps, constants, outputs.

    So who asks for no optional outputs does not wait for them to be computed for others.

    Only pieces of equal length can share a model call. A chunk is therefore run in pieces
    whose lengths are powers of two: few groups, so batches fill. Groups take turns, so neither
    long chunks nor single steps starve; within a group, who came first is first.

    The idea of batching cells of different requests as they become ready is BatchMaker's
    (Gao et al., "Low Latency RNN Inference with Cellular Batching", EuroSys 2018).
    """

    def __init__(self, max_piece: int) -> None:
        self._max_piece = max_piece
        self._singles: deque[Step] = deque()
        self._ready = {(1, b"", False): self._singles}  # in the order of their turns

    @property
    def has_ready(self) -> bool:
        """Whether any step is in line."""
        return any(self._ready.values())

    def push(self, step: Step) -> None:
        """Put a step (back) in line."""
        group = step.session.group
        if step.count == 1 and not group and not step.in_full:
            self._singles.append(step)
        else:
            self._ready.setdefault((self.piece_length(step), group, step.in_full), deque()).append(step)

    def take(self, limit: int) -> tuple[list[Step], int]:
        """Take up to `limit` steps of the group whose turn it is, and the piece length they share.

        Returns:
            The steps and their common piece length; no steps where nothing is ready.
        """
        for key, queue in self._ready.items():
            if queue:
                if len(self._ready) > 1:
                    del self._ready[key]
                    if queue is self._singles or len(queue) > limit:
                        self._ready[key] = queue  # to the end
                if len(queue) > limit:
                    return [queue.popleft() for _ in range(limit)], key[0]
                steps = list(queue)
                queue.clear()
                return steps, key[0]
        return [], 0

    def is_piece(self, steps: int) -> bool:
        """Whether so many time steps run in one model call."""
        return steps <= self._max_piece and steps & (steps - 1) == 0

    def piece_length(self, step: Step) -> int:
        """The number of time steps of this step that run in its next model call."""
        left = step.count - step.position
        return min(1 << (left.bit_length() - 1), self._max_piece)
