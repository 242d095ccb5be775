"""StepBatch: one message, many sessions.

Nearly always each row is the next step of another session: then the message is run as it is, in blocks. Otherwise
its rows are run step by step.
"""

import asyncio
from collections.abc import Callable, Sequence

from recurra.v1 import inference_pb2

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.block import Block
from recurra_server.engine.errors import EngineError, InvalidRequestError
from recurra_server.engine.outputs import check_size
from recurra_server.engine.sessions import Session
from recurra_server.engine.specs import TensorSpec
from recurra_server.engine.steps import Step
from recurra_server.rpc.results import durable_step, micros
from recurra_server.rpc.status import to_message
from recurra_server.rpc.tensors import decode_table, encode, split_rows
from recurra_server.tracecontext import TRACE

_Request = inference_pb2.StepBatchRequest
_Response = inference_pb2.StepBatchResponse
_FOUND_AT_ONCE = 16


async def step_batch(driver: Driver, request: _Request, deadline: float, caller: Account | None) -> _Response:
    """Apply one step or chunk to each of many sessions.

    Raises:
        EngineError: The message as a whole cannot be used; no row was applied.
    """
    session_ids, numbers = list(request.session_ids), list(request.steps)
    rows = len(session_ids)
    if not rows or len(numbers) not in (0, rows):
        raise InvalidRequestError(
            f"there are {rows} session_ids and {len(numbers)} steps; send at least one row, "
            "and as many steps as rows or none",
            field="steps",
        )
    limit = driver.engine.limits.max_batch_rows
    if rows > limit:
        raise InvalidRequestError(f"a StepBatch has at most {limit} rows, not {rows}", field="session_ids")
    now = driver.clock()
    sessions = driver.engine.find(session_ids, now, caller)
    if sessions is None:
        return await _step_by_step(driver, request, now, deadline, caller)
    model = sessions[0].model
    choice = model.choose(request.outputs)
    table, count, is_chunk = decode_table(request.inputs, model.signature, rows, driver.engine.limits.max_chunk_steps)
    specs = model.signature.default_outputs if choice is None else choice.specs
    check_size(specs, rows * count, driver.engine.limits.max_answer_mb)
    if not (model.fits_block(count) and model.blocks.takes(sessions, numbers)):
        return await _step_by_step(driver, request, now, deadline, caller)
    sessions[0].owner.spend(rows * count, now)
    waiter = _Gather()
    blocks = []
    for begin in range(0, rows, model.max_batch_size):
        some = slice(begin, begin + model.max_batch_size)
        inputs = tuple(_rows(data, some, rows) for data in table)
        blocks.append(
            Block(sessions[some], inputs, count, waiter, now, numbered=bool(numbers), deadline=deadline, choice=choice)
        )

    def submit() -> None:
        for block in blocks:
            driver.submit_block(model, block)

    await waiter.wait(len(blocks), submit)
    return _respond_blocks(specs, blocks, [count] if is_chunk else [])


async def _step_by_step(
    driver: Driver, request: _Request, now: float, deadline: float, caller: Account | None
) -> _Response:
    sessions, failed = await _find(driver, request.session_ids, caller)
    rows = len(request.session_ids)
    models = {session.model for session in sessions.values()}
    if len(models) > 1:
        raise InvalidRequestError(
            "the sessions of one StepBatch must be of one model and version, not "
            + ", ".join(sorted(f"{model.name}/{model.version}" for model in models)),
            field="session_ids",
        )
    if not models:
        return _respond_steps((), rows, {}, failed, chunk_steps=None)
    model = models.pop()
    signature, choice = model.signature, model.choose(request.outputs)
    table, count, is_chunk = decode_table(request.inputs, signature, rows, driver.engine.limits.max_chunk_steps)
    specs = signature.default_outputs if choice is None else choice.specs
    check_size(specs, rows * count, driver.engine.limits.max_answer_mb)
    next(iter(sessions.values())).owner.spend(rows * count, now)
    data = list(zip(*(split_rows(data, rows) for data in table), strict=True))
    numbers = request.steps or [0] * rows
    waiter = _Gather()
    steps = {
        row: Step(session, data[row], count, waiter, now, number=numbers[row], deadline=deadline, choice=choice)
        for row, session in sessions.items()
    }

    def submit() -> None:
        for step in steps.values():
            try:
                driver.submit(step)
            except EngineError as error:
                step.error = error
                waiter.answered(step)

    await waiter.wait(len(steps), submit)
    failed.update({row: step.error for row, step in steps.items() if step.error is not None})
    return _respond_steps(specs, rows, steps, failed, chunk_steps=count if is_chunk else None)


async def _find(
    driver: Driver, session_ids: Sequence[str], caller: Account | None
) -> tuple[dict[int, Session], dict[int, EngineError]]:
    """The sessions by their rows, in this order; and why there is none for the other rows.

    After a server's death all may have to be taken over from the store: several at a time, lest a message waits for as
    many round trips as it has rows, and not all at once, lest others wait behind them.
    """
    found: dict[int, Session] = {}
    failed: dict[int, EngineError] = {}
    absent: list[int] = []
    now = driver.clock()
    for row, session_id in enumerate(session_ids):
        try:
            found[row] = driver.engine.session(session_id, now, caller)
        except EngineError:
            absent.append(row)
    left = iter(absent)

    async def find_absent() -> None:
        for row in left:  # whichever is next: all that run this share them
            try:
                found[row] = await driver.find(session_ids[row], caller)
            except EngineError as error:
                failed[row] = error

    async with asyncio.TaskGroup() as tasks:
        for _ in absent[:_FOUND_AT_ONCE]:
            tasks.create_task(find_absent())
    return {row: found[row] for row in sorted(found)}, failed


class _Gather:
    """Waits for many steps or blocks with one future."""

    def __init__(self) -> None:
        self.gone = False
        self.trace = TRACE.get()
        self._left = 0
        self._all_told: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, count: int, submit: Callable[[], object]) -> None:
        """Submit so many, and wait until all are answered."""
        self._left = count
        try:
            submit()
            await self._all_told
        finally:
            self.gone = True

    def answered(self, _: Step | Block) -> None:
        """Count."""
        self._left -= 1
        if not self._left and not self._all_told.done():
            self._all_told.set_result(None)

    block_answered = answered


def _rows(data: bytes, some: slice, rows: int) -> bytes | memoryview:
    """The bytes of some of the rows of a table."""
    if some.start == 0 and some.stop >= rows:
        return data
    width = len(data) // rows
    return memoryview(data)[some.start * width : some.stop * width]


def _respond_blocks(specs: Sequence[TensorSpec], blocks: Sequence[Block], lead: list[int]) -> _Response:
    rows = sum(len(block) for block in blocks)
    response = _Response(
        outputs=encode(
            specs,
            [b"".join(parts) for parts in zip(*(block.outputs for block in blocks), strict=True)],
            [rows, *lead],
        )
    )
    begin = 0
    durable: list[int] = []
    for block in blocks:
        response.steps.extend(block.last_numbers)
        durable += [durable_step(session) for session in block.sessions]
        for row, error in sorted(block.errors.items()):
            response.errors.add(row=begin + row, error=to_message(error))
        begin += len(block)
    if any(durable):
        response.durable_steps.extend(durable)
    applied = [block for block in blocks if len(block.errors) < len(block)]
    if applied:
        response.timing.queue_us = micros(max(block.started - block.arrived for block in applied))
        response.timing.compute_us = micros(max(block.compute for block in applied))
        response.timing.batch_size = len(applied[-1])
    return response


def _respond_steps(
    specs: Sequence[TensorSpec],
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
    durable = [durable_step(steps[row].session) if row in steps else 0 for row in range(rows)]
    if any(durable):
        response.durable_steps.extend(durable)
    applied = [step for row, step in steps.items() if row not in failed and not step.replayed]
    if applied:
        response.timing.queue_us = micros(max(step.started - step.arrived for step in applied))
        response.timing.compute_us = micros(max(step.compute for step in applied))
        response.timing.batch_size = max(step.batch_size for step in applied)
    lead = [rows] if chunk_steps is None else [rows, chunk_steps]
    blobs = []
    for index, spec in enumerate(specs):
        nothing = bytes(spec.step_bytes * (chunk_steps or 1))
        blobs.append(b"".join(nothing if row in failed else steps[row].outputs[index] for row in range(rows)))
    response.outputs.extend(encode(specs, blobs, lead))
    return response
