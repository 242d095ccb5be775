"""StepBatch: one message, many sessions."""

import asyncio

from recurra.v1 import inference_pb2

from recurra_server.driver import Driver
from recurra_server.engine.errors import EngineError, InvalidRequestError
from recurra_server.engine.sessions import Session
from recurra_server.engine.signature import Signature
from recurra_server.engine.steps import Step
from recurra_server.rpc.results import micros
from recurra_server.rpc.status import to_message
from recurra_server.rpc.tensors import decode_rows, encode


async def step_batch(
    driver: Driver, request: inference_pb2.StepBatchRequest, deadline: float
) -> inference_pb2.StepBatchResponse:
    """Apply one step or chunk to each of many sessions.

    Raises:
        EngineError: The message as a whole cannot be used; no row was applied.
    """
    rows = len(request.session_ids)
    if not rows or len(request.steps) not in (0, rows):
        raise InvalidRequestError(
            f"there are {rows} session_ids and {len(request.steps)} steps; send at least one row, "
            "and as many steps as rows or none",
            field="steps",
        )
    limit = driver.engine.limits.max_batch_rows
    if rows > limit:
        raise InvalidRequestError(f"a StepBatch has at most {limit} rows, not {rows}", field="session_ids")
    now = driver.clock()
    failed: dict[int, EngineError] = {}
    sessions: dict[int, Session] = {}
    for row, session_id in enumerate(request.session_ids):
        try:
            sessions[row] = driver.engine.session(session_id, now)
        except EngineError as error:
            failed[row] = error
    models = {session.model for session in sessions.values()}
    if len(models) > 1:
        raise InvalidRequestError(
            "the sessions of one StepBatch must be of one model and version, not "
            + ", ".join(sorted(f"{model.name}/{model.version}" for model in models)),
            field="session_ids",
        )
    if not models:
        return _respond(None, rows, {}, failed, chunk_steps=None)
    signature = models.pop().signature
    inputs, count, chunk = decode_rows(request.inputs, signature, rows, driver.engine.limits.max_chunk_steps)
    gather = _Gather(len(sessions))
    numbers, data = request.steps or [0] * rows, list(zip(*inputs, strict=True))
    steps = {
        row: Step(session, data[row], count, gather, now, number=numbers[row], deadline=deadline)
        for row, session in sessions.items()
    }
    await gather.run(driver, list(steps.values()))
    failed.update({row: step.error for row, step in steps.items() if step.error is not None})
    return _respond(signature, rows, steps, failed, chunk_steps=count if chunk else None)


class _Gather:
    """Waits for many steps with one future."""

    def __init__(self, count: int) -> None:
        self.gone = False
        self._left = count
        self._all_told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self, driver: Driver, steps: list[Step]) -> None:
        """Submit the steps and wait for all; a step that is not accepted has its error set."""
        for step in steps:
            try:
                driver.submit(step)
            except EngineError as error:
                step.error = error
                self.answered(step)
        try:
            await self._all_told
        finally:
            self.gone = True

    def answered(self, _: Step) -> None:
        """Count."""
        self._left -= 1
        if not self._left and not self._all_told.done():
            self._all_told.set_result(None)


def _respond(
    signature: Signature | None,
    rows: int,
    steps: dict[int, Step],
    failed: dict[int, EngineError],
    *,
    chunk_steps: int | None,
) -> inference_pb2.StepBatchResponse:
    response = inference_pb2.StepBatchResponse(
        steps=[steps[row].last_number if row in steps and row not in failed else 0 for row in range(rows)],
        errors=[inference_pb2.RowError(row=row, error=to_message(error)) for row, error in sorted(failed.items())],
        replayed_rows=[row for row, step in steps.items() if step.replayed],
    )
    applied = [step for row, step in steps.items() if row not in failed and not step.replayed]
    if applied:
        response.timing.queue_us = micros(max(step.started - step.arrived for step in applied))
        response.timing.compute_us = micros(max(step.compute for step in applied))
        response.timing.batch_size = max(step.batch_size for step in applied)
    if signature is not None:
        lead = [rows] if chunk_steps is None else [rows, chunk_steps]
        blobs = []
        for index, spec in enumerate(signature.outputs):
            nothing = bytes(spec.step_bytes * (chunk_steps or 1))
            blobs.append(b"".join(nothing if row in failed else steps[row].outputs[index] for row in range(rows)))
        response.outputs.extend(encode(signature.outputs, blobs, lead))
    return response
