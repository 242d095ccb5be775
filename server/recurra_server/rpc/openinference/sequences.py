"""Sequences: which session a request belongs to, where it begins and where it ends."""

from collections import deque
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass
from functools import partial

from recurra.openinference import open_inference_pb2 as pb

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import (
    CapacityError,
    InvalidRequestError,
    SessionExpiredError,
    SessionNotFoundError,
    shown,
)
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.rpc.openinference.codec import Codec
from recurra_server.rpc.openinference.requests import Inference, session_id, shown_id
from recurra_server.rpc.status import to_engine_error


@dataclass(slots=True)
class _Line:
    """What waits until the sequence that had the id before is at rest.

    Attributes:
        model: What the last one that begins anew in this line runs on.
    """

    model: ServedModel
    inferences: deque[Inference]


class Sequences:
    """The sequences of all callers. A sequence is a session whose id comes from the caller's (`session_id`).

    A step that begins a sequence whose id is in use puts it in the place of the one before, after the steps that
    came before it; whatever comes behind it waits with it. A sequence whose first step fails, or is not waited for,
    has not begun; one whose last step fails has not ended.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._engine = driver.engine
        self._codecs: dict[ServedModel, Codec] = {}
        self._lines: dict[tuple[Account | None, str], _Line] = {}

    def take(self, inference: Inference, request: pb.ModelInferRequest) -> None:
        """Run a request when its turn comes; its caller is told what became of it.

        Raises:
            EngineError: It was not accepted.
        """
        if inference.sequence is None:
            model = self._engine.model(inference.model_name, inference.version)
            self._read(inference, request, model)
            lease = ExitStack()
            self._submit_first(inference, lease.enter_context(self._borrow(model, inference)), lease)
            return
        name = session_id(inference.model_name, inference.sequence)
        line = self._lines.get((inference.waiter.account, name)) if self._lines else None
        if inference.start:
            model = self._engine.model(inference.model_name, inference.version)
            self._read(inference, request, model)
            if line is None:
                self._begin(name, inference)
            else:
                self._join(line, inference)
                line.model = model
        elif line is not None:
            self._check_version(inference, line.model)
            self._read(inference, request, line.model)
            self._join(line, inference)
        else:
            session = self._find(name, inference)
            self._check_version(inference, session.model)
            self._read(inference, request, session.model)
            self._submit_next(inference, session)

    def forget(self, model: ServedModel) -> None:
        """A model is not served any more and has no sequences left."""
        self._codecs.pop(model, None)

    # --- the way of a request --------------------------------------------------------------

    def _read(self, inference: Inference, request: pb.ModelInferRequest, model: ServedModel) -> None:
        codec = self._codecs.get(model)
        if codec is None:
            self._engine.shelf.check(model)  # what is forgotten must not come back: nobody would forget it again
            codec = self._codecs[model] = Codec(model, self._engine.limits.max_chunk_steps)
        inference.codec = codec
        inference.inputs, inference.count, inference.lead = codec.read(request)
        if request.outputs:
            inference.ask(codec.choose(request.outputs))

    def _borrow(self, model: ServedModel, inference: Inference) -> AbstractContextManager[Session]:
        return self._engine.borrow(model, inference.arrived, caller=inference.waiter.account)

    def _find(self, name: str, inference: Inference) -> Session:
        try:
            return self._engine.session(name, inference.arrived, inference.waiter.account)
        except (SessionNotFoundError, SessionExpiredError):
            self._engine.model(inference.model_name, inference.version)  # what is missing may be the model
            raise

    def _begin(self, name: str, inference: Inference) -> None:
        """Begin a sequence in the place of the one with the same id, once that is at rest."""
        model, account, now = inference.codec.model, inference.waiter.account, self._driver.clock()
        before: Session | None = None
        with suppress(SessionNotFoundError, SessionExpiredError):
            before = self._engine.session(name, now, account)
        if before is not None and before.current is not None:
            before.model.turns.at_rest(before, partial(self._release, account, name, before))
            self._lines[account, name] = _Line(model, deque([inference]))
            return
        if inference.waiter.gone:  # it has not begun, and the one before has ended
            if before is not None:
                self._end(before)
            return
        opened = inference.waiter.opened
        if before is not None:
            session = self._engine.begin_anew(before, model, now)
        else:
            if opened is not None:
                opened.check_room()
            session = self._engine.open(model, now, session_id=name, caller=account)
        if opened is not None:
            opened.add(session)
        lease = ExitStack()
        lease.callback(self._end, session)
        self._submit_first(inference, session, lease)

    def _join(self, line: _Line, inference: Inference) -> None:
        limit = self._engine.limits.max_queue_per_session
        if len(line.inferences) >= limit:
            raise CapacityError(
                f"{limit} steps of sequence {shown_id(inference.sequence or 0)} wait already; read their answers first",
                retry_after=0.1,
                bound="max_queue_per_session",
                limit=limit,
            )
        line.inferences.append(inference)

    def _release(self, account: Account | None, name: str, before: Session) -> None:
        """The sequence before is at rest, or has ended: go on with what waits behind it."""
        inferences = self._lines.pop((account, name)).inferences
        while inferences:
            inference = inferences.popleft()
            line = self._lines.get((account, name))
            try:
                if line is not None:  # one of these begins anew in its turn
                    self._join(line, inference)
                elif inference.start:
                    self._begin(name, inference)
                elif not inference.waiter.gone:
                    self._submit_next(inference, self._engine.session(name, self._driver.clock(), account))
            except Exception as error:
                inference.fail(to_engine_error(error))
            self._end(before)  # if nothing has begun in its place: what waits was not meant for it

    def _submit_first(self, inference: Inference, session: Session, lease: ExitStack) -> None:
        """Submit the step that a session was opened for.

        The lease ends the session: if the step is the last one, too, if it fails, or if nobody waits for it any more.
        """
        leases = inference.waiter.leases

        def finish(inference: Inference) -> None:
            leases.discard(lease)
            if inference.end or inference.error is not None:
                lease.close()

        leases.add(lease)
        inference.finish = finish
        try:
            self._submit(inference, session)
        except Exception:
            leases.discard(lease)
            lease.close()
            raise

    def _submit_next(self, inference: Inference, session: Session) -> None:
        """Submit another step of a sequence, perhaps its last."""
        if inference.end:
            inference.finish = self._end_after
        self._submit(inference, session)

    def _submit(self, inference: Inference, session: Session) -> None:
        inference.session = session
        self._driver.submit(inference)

    def _end_after(self, inference: Inference) -> None:
        if inference.error is None:
            self._end(inference.session)

    def _end(self, session: Session) -> None:
        if not session.closed:
            self._engine.close(session)

    def _check_version(self, inference: Inference, model: ServedModel) -> None:
        if inference.version and inference.version != model.version:
            raise InvalidRequestError(
                f"sequence {shown_id(inference.sequence or 0)} runs on version {model.version} of the model, where "
                f"it began, not on {shown(inference.version)}: leave model_version unset, or begin it anew",
                field="model_version",
            )
