"""Makes the answer to a step."""

from typing import Final

from recurra.v1 import inference_pb2

from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.sessions import Session
from recurra_server.engine.steps import Step
from recurra_server.rpc.tensors import encode, fill_tensors

LARGEST_TEMPLATE: Final = 1 << 18
"""Bytes that a prepared message is filled with before it is made anew: it keeps all that its fields have ever held."""


def micros(seconds: float) -> int:
    """Seconds as whole microseconds, as StepTiming has them."""
    return min(int(seconds * 1e6), 0xFFFFFFFF)


def timing_of(step: Step) -> inference_pb2.StepTiming:
    """Tell where the time of a step went."""
    return inference_pb2.StepTiming(
        queue_us=micros(step.started - step.arrived), compute_us=micros(step.compute), batch_size=step.batch_size
    )


def durable_step(session: Session) -> int:
    """The last step of a session that outlives this server."""
    return 0 if session.durable is None else session.durable.step


def result_of(step: Step, *, chunk: bool) -> inference_pb2.StepResult:
    """The answer to a step that was applied, or to a chunk."""
    return inference_pb2.StepResult(
        step=step.last_number,
        outputs=encode(step.specs, step.outputs, [step.count] if chunk else []),
        timing=None if step.replayed else timing_of(step),
        replayed=step.replayed,
        durable_step=durable_step(step.session),
    )


class StreamResultTemplate:
    """A prepared StreamStepsResponse for single steps of one model with its default outputs: most of it never changes.

    Filling it in takes a quarter of the time of building a message. It is overwritten by the
    next step, so it must be serialised at once.

    Attributes:
        room: Bytes that it may still be filled with; below 0, it is to be made anew.
    """

    def __init__(self, model: ServedModel) -> None:
        self._specs = model.signature.default_outputs
        self._response = inference_pb2.StreamStepsResponse()
        self._result = self._response.result
        self._outputs = [self._result.outputs.add() for _ in self._specs]
        fill_tensors(self._outputs, self._specs, [b""] * len(self._specs), ())
        self._timing = self._result.timing
        self._durable_step = 0
        self.room = LARGEST_TEMPLATE

    def fill(self, step: Step) -> inference_pb2.StreamStepsResponse:
        """The response to a single step that was applied now."""
        self._response.session_id = session_id = step.session.id or ""
        self.room -= len(session_id)
        self._result.step = step.last_number
        for tensor, blob in zip(self._outputs, step.outputs, strict=True):
            tensor.data = blob
            self.room -= len(blob)
        timing = self._timing
        timing.queue_us = micros(step.started - step.arrived)
        timing.compute_us = micros(step.compute)
        timing.batch_size = step.batch_size
        durable = step.session.durable
        last = 0 if durable is None else durable.step
        if last != self._durable_step:
            self._result.durable_step = self._durable_step = last
        return self._response
