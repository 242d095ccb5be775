"""Which steps run next, and how many time steps of each."""

from collections import deque

from recurra_server.engine.steps import Step


class Scheduler:
    """Ready steps, at most one of a session, grouped by the number of time steps they run next.

    Only pieces of equal length can share a model call. A chunk is therefore run in pieces
    whose lengths are powers of two: few groups, so batches fill. Groups take turns by how long
    their first step has been ready, so neither long chunks nor single steps starve.

    The idea of batching cells of different requests as they become ready is BatchMaker's
    (Gao et al., "Low Latency RNN Inference with Cellular Batching", EuroSys 2018).
    """

    def __init__(self, max_piece: int) -> None:
        self._max_piece = max_piece
        self._ready: dict[int, deque[Step]] = {1: deque()}
        self._turn = 0

    def push(self, step: Step) -> None:
        """Put a step (back) in line."""
        self._turn += 1
        step.ready_turn = self._turn
        length = 1 if step.count == 1 else self.piece_length(step)
        queue = self._ready.get(length)
        if queue is None:
            queue = self._ready[length] = deque()
        queue.append(step)

    def take(self, limit: int) -> tuple[list[Step], int]:
        """Take up to `limit` steps that have waited longest, and the piece length they share.

        Returns:
            The steps and their common piece length; no steps where nothing is ready.
        """
        waiting = [(queue[0].ready_turn, length) for length, queue in self._ready.items() if queue]
        if not waiting:
            return [], 0
        length = min(waiting)[1]
        queue = self._ready[length]
        if len(queue) <= limit:
            steps = list(queue)
            queue.clear()
        else:
            steps = [queue.popleft() for _ in range(limit)]
        return steps, length

    def piece_length(self, step: Step) -> int:
        """The number of time steps of this step that run in its next model call."""
        left = step.count - step.position
        return min(1 << (left.bit_length() - 1), self._max_piece)
