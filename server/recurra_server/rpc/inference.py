"""InferenceService: steps, one by one, streamed, in bulk, whole, or generated."""

from typing import Any

import grpc
from recurra.v1 import inference_pb2, inference_pb2_grpc

from recurra_server.driver import Driver
from recurra_server.engine.served_model import ServedModel
from recurra_server.rpc.batches import step_batch
from recurra_server.rpc.generate import generate
from recurra_server.rpc.results import StreamResultTemplate, result_of, timing_of
from recurra_server.rpc.status import guarded
from recurra_server.rpc.step_stream import StepStream
from recurra_server.rpc.stream_base import OpenStreams
from recurra_server.rpc.tensors import decode_states, decode_steps, encode
from recurra_server.security.bounds import Bounds
from recurra_server.security.identity import caller_account
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Decodes, awaits the engine, encodes."""

    def __init__(
        self, driver: Driver, edge: EdgeCounts, streams: OpenStreams, *, stream_window: int, bounds: Bounds
    ) -> None:
        self.edge = edge
        self._streams = streams
        self._driver = driver
        self._engine = driver.engine
        self._stream_window = stream_window
        self._bounds = bounds
        self._templates: dict[ServedModel, StreamResultTemplate] = {}

    def forget(self, model: ServedModel) -> None:
        """A model is not served any more."""
        self._templates.pop(model, None)

    @guarded
    async def Step(self, request: inference_pb2.StepRequest, context: _Context) -> inference_pb2.StepResponse:
        """Apply one step or chunk."""
        session = await self._driver.find(request.session_id, caller_account())
        choice = session.model.choose(request.outputs)
        inputs, count, chunk = decode_steps(
            request.inputs, session.model.signature, self._engine.limits.max_chunk_steps
        )
        session.owner.spend(count, self._driver.clock())
        step = await self._driver.run_step(
            session, inputs, count, number=request.step, deadline=self._deadline(context), choice=choice
        )
        return inference_pb2.StepResponse(result=result_of(step, chunk=chunk))

    async def StreamSteps(self, request_iterator: Any, context: _Context) -> None:  # type: ignore[override]
        """Apply steps as they come."""
        stream = StepStream(
            self._driver,
            self.edge,
            self._templates,
            context,
            self._stream_window,
            caller_account(),
            max_sessions=self._bounds.max_sessions_per_stream,
        )
        await self._streams.serve(stream, context)

    @guarded
    async def StepBatch(
        self, request: inference_pb2.StepBatchRequest, context: _Context
    ) -> inference_pb2.StepBatchResponse:
        """Apply one step or chunk to each of many sessions."""
        response = await step_batch(self._driver, request, self._deadline(context), caller_account())
        for row in response.errors:
            self.edge.count_error(row.error)
        return response

    @guarded
    async def Predict(self, request: inference_pb2.PredictRequest, context: _Context) -> inference_pb2.PredictResponse:
        """Run a whole sequence in a session that only this call knows."""
        model = self._engine.model(request.model, request.version)
        choice = model.choose(request.outputs)
        states = decode_states(request.initial_states, model.signature.kept)
        inputs, count, chunk = decode_steps(request.inputs, model.signature, self._engine.limits.max_chunk_steps)
        with self._engine.borrow(model, self._driver.clock(), states, caller_account()) as session:
            session.owner.spend(count, self._driver.clock())
            step = await self._driver.run_step(session, inputs, count, deadline=self._deadline(context), choice=choice)
        specs, outputs = step.specs, step.outputs
        lead = [count] if chunk and not request.last_only else []
        if request.last_only:
            outputs = tuple(blob[-spec.step_bytes :] for spec, blob in zip(specs, outputs, strict=True))
        return inference_pb2.PredictResponse(outputs=encode(specs, outputs, lead), timing=timing_of(step))

    @guarded
    async def Generate(self, request: inference_pb2.GenerateRequest, context: _Context) -> None:  # type: ignore[override]
        """Feed each output back as the next input."""
        await self._streams.answer(generate(self._driver, request, caller_account()), context)

    def _deadline(self, context: _Context) -> float:
        left = context.time_remaining()
        return float("inf") if left is None else self._driver.clock() + left
