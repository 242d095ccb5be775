"""Runs the engine on the event loop: the thin concurrent wrapper round the pure core.

While a model call runs, the steps that arrive gather; when it returns, they are the next
batch. So batches grow with the load, and no step ever waits for company.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, Protocol, TypeVar

import structlog

from recurra_server.checkpoints import Checkpoints
from recurra_server.engine.accounts import Account
from recurra_server.engine.batch import Batch
from recurra_server.engine.block import Block, BlockBatch
from recurra_server.engine.engine import Engine
from recurra_server.engine.errors import SessionExpiredError, SessionNotFoundError, StepGapError
from recurra_server.engine.outputs import Choice
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Place, Session
from recurra_server.engine.steps import Buffer, Step
from recurra_server.tracecontext import TRACE

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class BatchObserver(Protocol):
    """Is told of every batch after it was committed."""

    def __call__(self, model: ServedModel, batch: Batch | BlockBatch, now: float, seconds: float) -> None:
        """Record a batch; `now` is when its steps were answered, `seconds` what the model call took."""
        ...


@dataclass(slots=True)
class _Lane:
    """A model on the loop.

    Attributes:
        executor: Where batches of more than `inline_work` time steps are run; None for the loop's own thread, too.
        awake: Whether a pump is scheduled or a batch is in flight.
        computed: Its model's seconds in calls when the load was looked at last.
    """

    model: ServedModel
    executor: ThreadPoolExecutor | None
    inline_work: float
    awake: bool = False
    computed: float = 0.0


class _Outcome(NamedTuple):
    """What a model call raised, and the seconds it took."""

    error: Exception | None
    seconds: float


def _call(batch: Batch | BlockBatch) -> _Outcome:
    """Call the model, perhaps on another thread."""
    started = time.perf_counter()
    error = None
    try:
        batch.run()
    except Exception as raised:
        error = raised
    return _Outcome(error, time.perf_counter() - started)


class _Caller:
    """One coroutine that waits for one step."""

    def __init__(self) -> None:
        self.told: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.gone = False
        self.trace = TRACE.get()

    def answered(self, _: Step) -> None:
        """Wake it, unless it has been cancelled and has not come to know yet."""
        if not self.told.done():
            self.told.set_result(None)


class Driver:
    """Feeds the engine and runs its batches. All methods belong to the loop's thread.

    Attributes:
        on_forget: Called with a model that is not served any more and has no sessions left.
        checkpoints: The store of durable sessions; None where there is none.
        observers: Told of every batch.
    """

    def __init__(
        self, engine: Engine, *, clock: Callable[[], float] = time.monotonic, observers: Sequence[BatchObserver] = ()
    ) -> None:
        self.engine = engine
        self.clock = clock
        self.observers = list(observers)
        self._lanes: dict[ServedModel, _Lane] = {}
        self.on_forget: list[Callable[[ServedModel], object]] = []
        self.checkpoints: Checkpoints | None = None

    def serve(
        self, model: ServedModel, executor: ThreadPoolExecutor | None = None, *, inline_work: float = 0.0
    ) -> ServedModel:
        """Add a model; with an executor, batches of more than `inline_work` time steps are run there.

        Handing a batch to another thread and back takes longer than a small one does; a large one would keep the
        loop's thread from reading what comes meanwhile.

        Returns:
            What is served now; see `Shelf.add`.
        """
        served = self.engine.add_model(model)
        if served is model:
            self._lanes[model] = _Lane(model, executor, inline_work)
            model.turns.on_ready = partial(self._wake, model)
        return served

    def submit(self, step: Step) -> None:
        """Hand a step to the engine; its waiter is told what became of it.

        Raises:
            EngineError: It was not accepted.
        """
        model = step.session.model
        model.turns.submit(step, step.arrived)
        self._wake(model)

    def submit_block(self, model: ServedModel, block: Block) -> None:
        """Hand a block to the engine that it `takes`; its waiter is told what became of it."""
        model.blocks.submit(block)
        self._wake(model)

    async def run_step(
        self,
        session: Session,
        inputs: tuple[Buffer, ...],
        count: int,
        *,
        number: int = 0,
        deadline: float = float("inf"),
        choice: Choice | None = None,
        after: Place | None = None,
    ) -> Step:
        """Apply a step and wait for it; a caller who stops waiting cancels it.

        Raises:
            EngineError: It was not applied.
        """
        waiter = _Caller()
        step = Step(session, inputs, count, waiter, self.clock(), number=number, deadline=deadline, choice=choice)
        step.after = after
        self.submit(step)
        try:
            await waiter.told
        finally:
            waiter.gone = True
        if step.error is not None:
            raise step.error
        return step

    async def at_rest(self, session: Session, operation: Callable[[], _T]) -> _T:
        """Perform an operation on a session once the steps before it are done.

        Raises:
            CapacityError: Too many steps and operations wait for the session.
            Exception: Whatever the operation raised.
        """
        finished: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

        def action() -> None:
            if finished.done():  # cancelled: nobody wants it any more
                return
            try:
                result = operation()
            except Exception as error:
                finished.set_exception(error)
            else:
                finished.set_result(result)

        session.model.turns.at_rest(session, action)
        return await finished

    async def find(self, session_id: str, caller: Account | None = None) -> Session:
        """Find an open session of the caller; one that is not here is taken over from the store, if that has it.

        Raises:
            SessionNotFoundError, SessionExpiredError: It is nowhere.
            Exception: As `Checkpoints.take_over`.
        """
        try:
            return self.engine.session(session_id, self.clock(), caller)
        except (SessionNotFoundError, SessionExpiredError):
            found = None if self.checkpoints is None else await self.checkpoints.take_over(session_id, caller)
            if found is None:
                raise
            return found

    async def has_applied(self, session: Session, step: int) -> Place:
        """Make sure of a step that somebody knows to be applied, before something is made of a session's states.

        Whatever was in flight or waited is done then. When this returns the session is still open.

        Returns:
            Where it stood.

        Raises:
            EngineError: The session has ended; as `Session.check_open`.
            StepGapError: It is not applied here: another server applied it, and was gone before it was durable.
            SessionMovedError: It is applied on another server, which has the session now.
            StoreUnavailableError: It is one of the two, and without the store nobody knows which.
            Exception: As `at_rest` and `Checkpoints.make_sure`.
        """

        def look() -> Place:
            session.check_applied(step)
            return session.place

        try:
            place = await self.at_rest(session, look)
        except StepGapError:
            if self.checkpoints is not None:
                await self.checkpoints.make_sure(session)
            raise
        session.check_open()  # since then it may have ended: by what waited behind it, or by its time
        return place

    async def saved(self, session: Session) -> None:
        """Wait until a session is in the store as it stands, if it is durable; see `Checkpoints.saved`."""
        if self.checkpoints is not None:
            await self.checkpoints.saved(session)

    async def expire_forever(self, interval: float = 1.0) -> None:
        """End sessions whose time is up, and forget models whose time is, every `interval` seconds."""
        while True:
            await asyncio.sleep(interval)
            self.engine.expire(self.clock())
            self._forget_retired()

    async def watch_load(self, interval: float = 0.25) -> None:
        """Tell the models' admission how busy the loop's thread and the models' are, every `interval` seconds.

        To be awaited on the loop's thread.
        """
        before = self.clock(), time.thread_time()
        while True:
            await asyncio.sleep(interval)
            after = self.clock(), time.thread_time()
            passed = after[0] - before[0]
            self._tell_load((after[1] - before[1]) / passed, passed)
            before = after

    # Functions of their own: what runs for ever would hold on to the model that it looked at last.

    def _forget_retired(self) -> None:
        for model in self.engine.shelf.forget_retired():
            del self._lanes[model]
            for forget in self.on_forget:
                forget(model)

    def _tell_load(self, loop: float, passed: float) -> None:
        for lane in self._lanes.values():
            computed, lane.computed = lane.model.compute_seconds - lane.computed, lane.model.compute_seconds
            if lane.model.admission is not None:
                lane.model.admission.observe_load(max(loop, computed / passed))

    def _wake(self, model: ServedModel) -> None:
        lane = self._lanes[model]
        if not lane.awake:
            # Not at once: the other steps that came with this turn of the loop join the batch.
            lane.awake = True
            asyncio.get_running_loop().call_soon(self._pump, lane)

    def _pump(self, lane: _Lane) -> None:
        """Run the next batch; called again as long as there is one."""
        loop = asyncio.get_running_loop()
        try:
            batch = lane.model.next_batch(self.clock())
        except Exception:
            _log.exception("batch_not_made", model=lane.model.name, version=lane.model.version)
            loop.call_soon(self._pump, lane)
            return
        if batch is None:
            lane.awake = False
        elif lane.executor is None or batch.work <= lane.inline_work:
            self._finish(lane, batch, _call(batch))
            lane.awake = lane.model.has_ready
            if lane.awake:  # after a turn of the loop, in which more can come
                loop.call_soon(self._pump, lane)
        else:
            call = loop.run_in_executor(lane.executor, _call, batch)
            call.add_done_callback(partial(self._returned, lane, batch))

    def _returned(self, lane: _Lane, batch: Batch | BlockBatch, call: "asyncio.Future[_Outcome]") -> None:
        self._finish(lane, batch, call.result())
        self._pump(lane)

    def _finish(self, lane: _Lane, batch: Batch | BlockBatch, outcome: _Outcome) -> None:
        """Take in what a model call returned."""
        model, now = lane.model, self.clock()
        try:
            if outcome.error is not None:
                model.fail(batch, outcome.error, now)
                return
            model.commit(batch, now, outcome.seconds)
        except Exception:
            _log.exception("batch_failed", model=model.name, version=model.version, size=len(batch))
            model.abandon(batch, now)
        for observe in self.observers:
            observe(model, batch, now, outcome.seconds)
