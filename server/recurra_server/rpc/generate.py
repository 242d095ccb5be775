"""Generate: each output becomes the next input."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import grpc
import numpy as np
from recurra.v1 import inference_pb2, tensor_pb2

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import InvalidRequestError, NoFeedbackError
from recurra_server.engine.feedback import Sampling
from recurra_server.engine.sessions import Place, Session
from recurra_server.engine.signature import TensorSpec
from recurra_server.engine.steps import Step
from recurra_server.rpc.results import durable_step, timing_of
from recurra_server.rpc.tensors import decode_steps, encode

_Context = grpc.aio.ServicerContext[Any, Any]


async def generate(
    driver: Driver, request: inference_pb2.GenerateRequest, caller: Account | None
) -> AsyncGenerator[inference_pb2.GenerateResponse, None]:
    """Feed a model's output back to it, step by step, as long as nothing else becomes of the session.

    Raises:
        SessionChangedError: It was reset, rewound or stepped by others; what was generated before stood until then.
        EngineError: The request does not fit the model, or a step failed; what was generated before stands.
    """
    start = request.WhichOneof("start")
    if start == "session_id":
        session = await driver.find(request.session_id, caller)
        place = await driver.has_applied(session, request.after_step)
        async for response in _run(driver, request, session, place):
            yield response
        await driver.saved(session)  # its caller does not have the inputs to send them again
    elif start == "model":
        model = driver.engine.model(request.model.name, request.model.version)
        with driver.engine.borrow(model, driver.clock(), caller=caller) as session:
            async for response in _run(driver, request, session, session.place):
                yield response
    else:
        raise InvalidRequestError("either session_id or model must be set: where to begin", field="start")


async def _run(
    driver: Driver, request: inference_pb2.GenerateRequest, session: Session, place: Place
) -> AsyncIterator[inference_pb2.GenerateResponse]:
    signature, bound = session.model.signature, driver.engine.limits.max_chunk_steps
    feedback = signature.feedback
    if feedback is None:
        raise NoFeedbackError(
            f"model {session.model.name!r} does not say how an output becomes the next input; "
            "export it with `feedback`",
            model=session.model.name,
        )
    if not 1 <= request.max_steps <= bound:
        raise InvalidRequestError(f"max_steps must be 1 to {bound}, not {request.max_steps}", field="max_steps")
    draw = _Draw(request, signature.inputs[0], sampled=feedback.sampled)
    wanted = list(request.outputs[: len(signature.outputs) + 1])  # of more, one is unknown or stands twice
    asked = [*wanted, feedback.output] if wanted and feedback.output not in wanted else wanted
    choice = session.model.choose(asked)
    specs = signature.default_outputs if choice is None else choice.specs
    index = next(i for i, spec in enumerate(specs) if spec.name == feedback.output)
    inputs, count, _ = decode_steps(request.inputs, signature, bound)
    for _ in range(request.max_steps):
        if pause := session.owner.charge(count, driver.clock()):
            await asyncio.sleep(pause)
        # Without a number, as there is no caller to ask for its reply again.
        step = await driver.run_step(session, inputs, count, choice=choice, after=place)
        place = place._replace(applied=step.last_number)
        last = [blob[-out.step_bytes :] for out, blob in zip(specs, step.outputs, strict=True)]
        following = draw(np.frombuffer(last[index], specs[index].np_dtype)) if feedback.sampled else last[index]
        answered = len(wanted) or len(specs)
        yield _response(step, encode(specs[:answered], last[:answered], ()), following)
        if draw.stopped:
            return
        inputs, count = (following,), 1


class _Draw:
    """Draws the next input from logits."""

    def __init__(self, request: inference_pb2.GenerateRequest, target: TensorSpec, *, sampled: bool) -> None:
        if not sampled and (request.HasField("sampling") or request.HasField("stop_class")):
            raise InvalidRequestError(
                "sampling and stop_class are for models whose feedback is sampled", field="sampling"
            )
        sampling = request.sampling
        self._sampling = Sampling(sampling.temperature, sampling.top_k)
        self._rng = np.random.default_rng(sampling.seed if sampling.HasField("seed") else None)
        self._stop = request.stop_class if request.HasField("stop_class") else None
        self._dtype = target.np_dtype
        self.stopped = False

    def __call__(self, logits: "np.ndarray[Any, Any]") -> bytes:
        drawn = self._sampling.draw(logits, self._rng)
        self.stopped = drawn == self._stop
        return np.array(drawn, self._dtype).tobytes()


def _response(step: Step, outputs: list[tensor_pb2.Tensor], following: bytes) -> inference_pb2.GenerateResponse:
    return inference_pb2.GenerateResponse(
        result=inference_pb2.StepResult(
            step=step.last_number,
            outputs=outputs,
            timing=timing_of(step),
            durable_step=durable_step(step.session),
        ),
        next_input=encode(step.session.model.signature.inputs, [following], ())[0],
    )
