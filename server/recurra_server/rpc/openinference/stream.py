"""ModelStreamInfer: steps as they come, of any number of sequences, over one stream.

A task reads and submits; what the engine answers is written at once. A failed request is answered with
an error and the stream goes on. A caller who sends faster than it reads is made to wait: the reader stops
at a bound of unanswered requests.
"""

import asyncio
from contextlib import ExitStack
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from recurra.openinference import open_inference_pb2 as pb

from recurra_server.driver import Driver
from recurra_server.engine.errors import DrainingError, EngineError, InvalidRequestError
from recurra_server.rpc.openinference.requests import Inference, read_request
from recurra_server.rpc.openinference.sequences import Sequences
from recurra_server.rpc.status import abort, to_engine_error
from recurra_server.rpc.writer import EagerWriter
from recurra_server.telemetry.metrics import EdgeCounts

_Context = grpc.aio.ServicerContext[Any, Any]
_ECHOED = 1024  # characters of a request's id, in an error's answer


class InferStream:
    """One ModelStreamInfer call.

    Attributes:
        gone: Whether the call is over.
        leases: What ends the sessions whose first step is not answered.
    """

    def __init__(self, driver: Driver, sequences: Sequences, edge: EdgeCounts, context: _Context, window: int) -> None:
        self.gone = False
        self.leases: set[ExitStack] = set()
        self._driver = driver
        self._sequences = sequences
        self._edge = edge
        self._context = context
        self._window = window  # requests read and not yet answered
        self._unanswered = 0
        self._max_steps = driver.engine.limits.max_chunk_steps
        self._unanswered_steps = 0  # of chunks: what is answered to a few long ones is as much as to many steps
        self._writer = EagerWriter(context.write, self._written, self._fail)
        self._room: asyncio.Future[None] | None = None  # what the reader waits for when the window is full
        self._all_read = self._expelled = False
        self._finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run(self) -> None:
        """Serve the stream until the caller has sent and received all."""
        reader = asyncio.ensure_future(self._read())
        try:
            await self._finished
        finally:
            self.gone = True
            self._writer.close()
            for lease in tuple(self.leases):
                lease.close()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
        if self._expelled:
            await abort(self._context, DrainingError("the server shuts down; go on elsewhere", retry_after=0.1))

    def announce(self, grace: float) -> None:
        """The server shuts down: the protocol has no word for it, so the caller learns it at the end."""

    def expel(self) -> None:
        """Read no more, answer what was read, and end the stream with DRAINING."""
        self._expelled = self._all_read = True
        self._check_finished()

    # --- reading -------------------------------------------------------------------------

    async def _read(self) -> None:
        read = self._context.read
        try:
            while not self._all_read and (request := await read()) is not grpc.aio.EOF:
                self._unanswered += 1
                self._accept(request)
                while self._unanswered >= self._window or self._unanswered_steps > self._max_steps:
                    self._room = asyncio.get_running_loop().create_future()
                    await self._room
        except DecodeError:
            self._fail(InvalidRequestError("a message is not a ModelInferRequest", field="message"))
        except Exception as error:
            self._fail(error)
        self._all_read = True
        self._check_finished()

    def _accept(self, request: pb.ModelInferRequest) -> None:
        """Do what a request asks for; whatever fails becomes its answer."""
        inference: Inference | None = None
        try:
            inference = read_request(request, self, self._driver.clock())
            self._sequences.take(inference, request)
        except Exception as error:
            known = to_engine_error(error)
            if inference is not None:
                known = inference.explain(known)
            self._writer.put(self._refusal, (request.id[:_ECHOED], known), 0)
        else:
            self._unanswered_steps += inference.count

    # --- writing -------------------------------------------------------------------------

    def reply(self, inference: Inference) -> None:
        """Answer a request that was accepted."""
        self._writer.put(self._render, inference, inference.count)

    def _render(self, inference: Inference) -> pb.ModelStreamInferResponse:
        if inference.error is not None:
            return self._refusal((inference.id, inference.error))
        return inference.codec.write_streamed(inference.id, inference.outputs, inference.lead, inference.chosen)

    def _refusal(self, about: tuple[str, EngineError]) -> pb.ModelStreamInferResponse:
        """An error as an answer. Many clients show no more of it than its text, so all is in there."""
        request_id, error = about
        self._edge.count_error(error.reason)
        whose = f"[request id: {request_id}] " if request_id else ""
        response = pb.ModelStreamInferResponse(error_message=f"{whose}{error.reason}: {error.message}")
        response.infer_response.id = request_id
        response.infer_response.parameters["reason"].string_param = error.reason
        response.infer_response.parameters["triton_final_response"].bool_param = True
        return response

    def _written(self, steps: int) -> None:
        """A response was sent."""
        self._unanswered -= 1
        self._unanswered_steps -= steps
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        if self._all_read:
            self._check_finished()

    def _check_finished(self) -> None:
        if self._all_read and not self._unanswered and not self._finished.done():
            self._finished.set_result(None)

    def _fail(self, error: BaseException) -> None:
        """The connection is gone, or a bug: either ends the stream."""
        if not self._finished.done():
            self._finished.set_exception(error)
