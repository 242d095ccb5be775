"""What a team would write in an afternoon: a gRPC stream, a dict of (h, c), one model call a step. No batching.

`--threads` serves with grpcio's thread pool, else with grpc.aio on uvloop.
"""

import argparse
import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop
from recurra.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

from benchmarks.models import Array, LocalModel

Context = grpc.aio.ServicerContext[Any, Any]
Request = inference_pb2.StreamStepsRequest
Response = inference_pb2.StreamStepsResponse


class Steps:
    """The sessions and their states."""

    def __init__(self, model: LocalModel) -> None:
        self._model = model
        self._states: dict[str, dict[str, Array]] = {}
        self._counts: dict[str, int] = {}

    def apply(self, name: str, request: Request) -> Response:
        """One step of one session."""
        states = self._states.get(name) or self._model.start(1)
        x = np.frombuffer(request.inputs[0].data, np.float32).reshape(1, 1, -1)
        y, self._states[name] = self._model.run(x, states)
        step = self._counts[name] = self._counts.get(name, 0) + 1
        tensor = tensor_pb2.Tensor(name="y", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1], data=y.tobytes())
        return Response(session_id=name, result=inference_pb2.StepResult(step=step, outputs=[tensor]))


class Asynchronous(inference_pb2_grpc.InferenceServiceServicer):
    """On grpc.aio."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    async def StreamSteps(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """A session a stream."""
        name = ""
        while (request := await context.read()) is not grpc.aio.EOF:
            name = request.open.session_id or name
            await context.write(self._steps.apply(name, request))


class Threaded(inference_pb2_grpc.InferenceServiceServicer):
    """On grpcio's thread pool: a thread a stream."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def StreamSteps(self, request_iterator: Iterator[Request], context: object) -> Iterator[Response]:  # noqa: N802
        """A session a stream."""
        name = ""
        for request in request_iterator:
            name = request.open.session_id or name
            yield self._steps.apply(name, request)


async def serve(steps: Steps, port: int) -> None:
    """Serve on grpc.aio until the process is ended."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Asynchronous(steps), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def serve_threaded(steps: Steps, port: int) -> None:
    """Serve on threads until the process is ended."""
    server = grpc.server(ThreadPoolExecutor(80))
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Threaded(steps), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", action="store_true")
    options = parser.parse_args()
    shared = Steps(LocalModel(options.model))
    if options.threads:
        serve_threaded(shared, options.port)
    else:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(shared, options.port))
