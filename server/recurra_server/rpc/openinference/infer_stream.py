"""ModelStreamInfer: steps as they come, of any number of sequences, over one stream."""

from contextlib import ExitStack
from typing import Any

import grpc
from recurra.openinference import open_inference_pb2 as pb

from recurra_server.driver import Driver
from recurra_server.engine.accounts import Account
from recurra_server.engine.errors import EngineError
from recurra_server.rpc.openinference.requests import Inference, read_request
from recurra_server.rpc.openinference.sequences import Sequences
from recurra_server.rpc.status import to_engine_error
from recurra_server.rpc.stream_base import Stream
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_ECHOED = 1024  # characters of a request's id, in an error's answer


class InferStream(Stream):
    """One ModelStreamInfer call.

    Attributes:
        account: Whose sequences it sees; None where callers are not told apart.
        leases: What ends the sessions whose first step is not answered.
    """

    def __init__(
        self,
        driver: Driver,
        sequences: Sequences,
        edge: EdgeCounts,
        context: _Context,
        window: int,
        account: Account | None,
        *,
        max_sessions: int = 10_000,
    ) -> None:
        super().__init__(
            context, window=window, max_steps=driver.engine.limits.max_chunk_steps, max_sessions=max_sessions
        )
        self.account = account
        self.leases: set[ExitStack] = set()
        self._clock = driver.clock
        self._sequences = sequences
        self._edge = edge

    async def run(self) -> None:
        """Serve the stream until the caller has sent and received all."""
        try:
            await super().run()
        finally:
            for lease in tuple(self.leases):
                lease.close()

    def announce(self, grace: float) -> None:
        """The protocol has no word for it: the caller learns it at the end."""

    def _accept(self, request: pb.ModelInferRequest) -> None:
        """Do what a request asks for; whatever fails becomes its answer."""
        inference: Inference | None = None
        try:
            inference = read_request(request, self, self._clock())
            self._sequences.take(inference, request)
        except Exception as error:
            known = to_engine_error(error)
            if inference is not None:
                known = inference.explain(known)
            self._writer.put(self._refusal, (request.id[:_ECHOED], known), 0)
        else:
            self._unanswered_steps += inference.count
            if self.account is not None:
                self.account.charge(inference.count, inference.arrived)

    def answered(self, step: Inference) -> None:
        """Called by the engine: answer a request that was accepted."""
        self._writer.put(self._render, step, step.count)
        if step.finish is not None:
            step.finish(step)

    def _render(self, inference: Inference) -> pb.ModelStreamInferResponse:
        if inference.error is not None:
            return self._refusal((inference.id, inference.explain(inference.error)))
        return inference.codec.write_streamed(inference.id, inference.outputs, inference.lead, inference.choice)

    def _refusal(self, about: tuple[str, EngineError]) -> pb.ModelStreamInferResponse:
        """An error as an answer. Many clients show no more of it than its text, so all is in there."""
        request_id, error = about
        self._edge.count_error(error)
        whose = f"[request id: {request_id}] " if request_id else ""
        response = pb.ModelStreamInferResponse(error_message=f"{whose}{error.reason}: {error.message}")
        response.infer_response.id = request_id
        response.infer_response.parameters["reason"].string_param = error.reason
        response.infer_response.parameters["triton_final_response"].bool_param = True
        return response
