"""StepBatch: one message, many sessions.

Nearly always each row is the next step of another session: then the message is run as it is, in blocks. Otherwise
its rows are run step by step.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from recurra.v1 import error_pb2, inference_pb2

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.block import Block
from recurra_server.engine.errors import EngineError, InputNameError, InvalidRequestError
from recurra_server.engine.outputs import Choice, check_size
from recurra_server.engine.served_model import ServedModel
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


@dataclass(frozen=True, slots=True)
class _Table:
    """What is asked of each row.

    Attributes:
        inputs: For each input of the signature, all rows `[B, count, *dims]` as little-endian bytes.
        count, is_chunk: Steps of each row, and whether they came as a chunk.
        numbers: Each row's step number; empty: none has one.
        choice, specs: The outputs that are asked for by name, and those that are answered.
        arrived, deadline: Times in seconds.
    """

    inputs: tuple[bytes, ...]
    count: int
    is_chunk: bool
    numbers: list[int]
    choice: Choice | None
    specs: Sequence[TensorSpec]
    arrived: float
    deadline: float

    @property
    def chunk_axis(self) -> list[int]:
        """The axis of the outputs behind that of the rows, where there is one."""
        return [self.count] if self.is_chunk else []


async def step_batch(driver: Driver, request: _Request, deadline: float, caller: Account | None) -> _Response:
    """Apply one step or chunk to each of many sessions.

    Raises:
        EngineError: The message as a whole cannot be used; no row was applied.
    """
    engine, now = driver.engine, driver.clock()
    rows = _count_rows(request, engine.limits.max_batch_rows)
    owner = caller or engine.accounts.nobody
    owner.spend(rows, now)  # before they are looked for: that costs, too, and most where there are none
    found, places, failed = await _find(driver, list(request.session_ids), caller)
    if not found:
        return _respond_errors(rows, failed)
    model = found[0].model
    choice = model.choose(request.outputs)
    inputs, count, is_chunk = decode_table(request.inputs, model.signature, rows, engine.limits.max_chunk_steps)
    specs = model.signature.default_outputs if choice is None else choice.specs
    check_size(specs, rows * count, engine.limits.max_answer_mb)
    owner.spend(rows * count, now, paid=rows)
    table = _Table(inputs, count, is_chunk, list(request.steps), choice, specs, now, deadline)
    if not failed and model.fits_block(count) and model.blocks.takes(found, table.numbers):
        return await _run_blocks(driver, model, found, table)
    return await _run_steps(driver, rows, dict(zip(places, found, strict=True)), failed, table)


def _count_rows(request: _Request, limit: int) -> int:
    """The number of rows of a message that may be used, as far as can be told by its lengths: nothing is copied yet.

    Raises:
        InvalidRequestError, InputNameError: It cannot be used.
    """
    rows, numbers = len(request.session_ids), len(request.steps)
    if not rows or numbers not in (0, rows):
        raise InvalidRequestError(
            f"there are {rows} session_ids and {numbers} steps; send at least one row, and as many steps as rows or "
            "none",
            field="steps",
        )
    if rows > limit:
        raise InvalidRequestError(f"a StepBatch has at most {limit} rows, not {rows}", field="session_ids")
    if not request.inputs:
        raise InputNameError("there are no inputs; send each input of the model, with all rows in it")
    return rows


async def _find(
    driver: Driver, session_ids: Sequence[str], caller: Account | None
) -> tuple[list[Session], Sequence[int], dict[int, error_pb2.Error]]:
    """The sessions that there are, all of one model; their rows; and why there is none for the other rows.

    After a server's death all may have to be taken over from the store: several at a time, lest a message waits for as
    many round trips as it has sessions, and not all at once, lest others wait behind them.

    Raises:
        InvalidRequestError: They are of several models.
    """
    now = driver.clock()
    if (all_here := driver.engine.find(session_ids, now, caller)) is not None:
        return all_here, range(len(all_here)), {}
    found: dict[str, Session] = {}
    failed: dict[str, error_pb2.Error] = {}
    absent: list[str] = []
    for session_id in dict.fromkeys(session_ids):  # once, however many rows it has
        here = driver.engine.find([session_id], now, caller)
        if here is None:
            absent.append(session_id)
        else:
            found[session_id] = here[0]
    left = iter(absent)

    async def find_absent() -> None:
        for session_id in left:  # whichever is next: all that run this share them
            try:
                found[session_id] = await driver.find(session_id, caller)
            except EngineError as error:
                failed[session_id] = to_message(error)
            await asyncio.sleep(0)  # without a store nothing else lets others have their turn

    async with asyncio.TaskGroup() as tasks:
        for _ in absent[:_FOUND_AT_ONCE]:
            tasks.create_task(find_absent())
    models = {session.model for session in found.values()}
    if len(models) > 1:
        raise InvalidRequestError(
            "the sessions of one StepBatch must be of one model and version, not "
            + ", ".join(sorted(f"{model.name}/{model.version}" for model in models)),
            field="session_ids",
        )
    places = [row for row, session_id in enumerate(session_ids) if session_id in found]
    why = {row: failed[session_id] for row, session_id in enumerate(session_ids) if session_id in failed}
    return [found[session_ids[row]] for row in places], places, why


async def _run_blocks(driver: Driver, model: ServedModel, sessions: list[Session], table: _Table) -> _Response:
    """Run all rows together, as many in a call as the model takes."""
    rows = len(sessions)
    waiter = _Gather()
    blocks = []
    for begin in range(0, rows, model.max_batch_size):
        some = slice(begin, begin + model.max_batch_size)
        blocks.append(
            Block(
                sessions[some],
                tuple(_rows(data, some, rows) for data in table.inputs),
                table.count,
                waiter,
                table.arrived,
                numbered=bool(table.numbers),
                deadline=table.deadline,
                choice=table.choice,
            )
        )

    def submit() -> None:
        for block in blocks:
            driver.submit_block(model, block)

    await waiter.wait(len(blocks), submit)
    return _respond_blocks(table, blocks)


async def _run_steps(
    driver: Driver, rows: int, sessions: dict[int, Session], failed: dict[int, error_pb2.Error], table: _Table
) -> _Response:
    """Run the rows that have a session one by one; `failed` says why the others have none."""
    data = list(zip(*(split_rows(data, rows) for data in table.inputs), strict=True))
    numbers = table.numbers or [0] * rows
    waiter = _Gather()
    steps = {
        row: Step(
            session,
            data[row],
            table.count,
            waiter,
            table.arrived,
            number=numbers[row],
            deadline=table.deadline,
            choice=table.choice,
        )
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
    failed.update({row: to_message(step.error) for row, step in steps.items() if step.error is not None})
    return _respond_steps(table, rows, steps, failed)


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


def _respond_blocks(table: _Table, blocks: Sequence[Block]) -> _Response:
    rows = sum(len(block) for block in blocks)
    response = _Response(
        outputs=encode(
            table.specs,
            [b"".join(parts) for parts in zip(*(block.outputs for block in blocks), strict=True)],
            [rows, *table.chunk_axis],
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


def _respond_steps(table: _Table, rows: int, steps: dict[int, Step], failed: dict[int, error_pb2.Error]) -> _Response:
    response = _respond_errors(rows, failed)
    for row, step in steps.items():
        if row not in failed:
            response.steps[row] = step.last_number
    response.replayed_rows.extend(row for row, step in steps.items() if step.replayed)
    durable = [durable_step(steps[row].session) if row in steps else 0 for row in range(rows)]
    if any(durable):
        response.durable_steps.extend(durable)
    applied = [step for row, step in steps.items() if row not in failed and not step.replayed]
    if applied:
        response.timing.queue_us = micros(max(step.started - step.arrived for step in applied))
        response.timing.compute_us = micros(max(step.compute for step in applied))
        response.timing.batch_size = max(step.batch_size for step in applied)
    blobs = []
    for index, spec in enumerate(table.specs):
        nothing = bytes(spec.step_bytes * table.count)
        blobs.append(b"".join(nothing if row in failed else steps[row].outputs[index] for row in range(rows)))
    response.outputs.extend(encode(table.specs, blobs, [rows, *table.chunk_axis]))
    return response


def _respond_errors(rows: int, failed: dict[int, error_pb2.Error]) -> _Response:
    """The answer to rows of which some have failed, and the others have no step yet."""
    response = _Response(steps=[0] * rows)
    for row, error in sorted(failed.items()):
        response.errors.add(row=row, error=error)
    return response
