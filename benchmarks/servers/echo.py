"""The limit: a bare grpc.aio server that parses each step and answers a response of the size ours has, at once."""

import argparse
import asyncio
from typing import Any

import grpc
import uvloop
from recurra.v1 import inference_pb2, inference_pb2_grpc, tensor_pb2

Context = grpc.aio.ServicerContext[Any, Any]


class Echo(inference_pb2_grpc.InferenceServiceServicer):
    """Remembers nothing and computes nothing."""

    async def StreamSteps(self, request_iterator: object, context: Context) -> None:  # type: ignore[override]  # noqa: N802
        """`read` and `write` on the context: quicker than iterating and yielding."""
        name, step = "", 0
        while (request := await context.read()) is not grpc.aio.EOF:
            if request.HasField("open"):
                name = request.open.session_id
            step += 1
            await context.write(_response(name, step, bytes(len(request.inputs[0].data) // 16)))


def _response(name: str, step: int, data: bytes) -> inference_pb2.StreamStepsResponse:
    tensor = tensor_pb2.Tensor(name="y", dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[1], data=data)
    timing = inference_pb2.StepTiming(queue_us=10, compute_us=20, batch_size=1)
    result = inference_pb2.StepResult(step=step, outputs=[tensor], timing=timing)
    return inference_pb2.StreamStepsResponse(session_id=name, result=result)


async def serve(port: int) -> None:
    """Serve until the process is ended."""
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(Echo(), server)  # type: ignore[abstract]
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(parser.parse_args().port))
