"""Logs steps that took long, and why; at most a line a second."""

from collections.abc import Sequence
from operator import attrgetter

import structlog

from recurra_server.engine.batch import Batch
from recurra_server.engine.block import Block, BlockBatch
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.steps import Step
from recurra_server.tracecontext import trace_of

_log = structlog.get_logger(__name__)
_ARRIVED = attrgetter("arrived")
_PAUSE = 1.0  # seconds between two lines


class SlowSteps:
    """Looks at every batch for the step that took longest.

    Args:
        threshold: Seconds from which on a step is slow.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._said_at = float("-inf")
        self._unsaid = 0

    def observe_batch(self, model: ServedModel, batch: Batch | BlockBatch, now: float, seconds: float) -> None:  # noqa: ARG002
        """Log the batch's slowest step if it is slow."""
        oldest = batch.block.arrived if isinstance(batch, BlockBatch) else min(map(_ARRIVED, batch.steps))
        if now - oldest >= self._threshold and batch.answered:
            self._slow(model, batch, now)

    def _slow(self, model: ServedModel, batch: Batch | BlockBatch, now: float) -> None:
        answered: Sequence[Step | Block] = batch.answered
        slowest = min(answered, key=_ARRIVED)
        if now - slowest.arrived < self._threshold:
            return
        if now - self._said_at < _PAUSE:
            self._unsaid += 1
            return
        waited, computed = slowest.started - slowest.arrived, slowest.compute
        rest = now - slowest.arrived - waited - computed
        session = slowest.sessions[0] if isinstance(slowest, Block) else slowest.session
        trace = trace_of(slowest.waiter)
        _log.warning(
            "slow_step",
            reason=max((waited, "queue"), (computed, "compute"), (rest, "server"))[1],
            model=model.name,
            version=model.version,
            session=session.id,
            time_steps=slowest.count,
            batch_size=len(batch),
            seconds=round(now - slowest.arrived, 6),
            queue_seconds=round(waited, 6),
            compute_seconds=round(computed, 6),
            slow_batches_not_logged=self._unsaid,
            **({"trace_id": trace.id} if trace is not None and trace.id else {}),
        )
        self._said_at, self._unsaid = now, 0
