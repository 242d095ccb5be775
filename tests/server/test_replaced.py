"""A model that was replaced is let go of by everything that has used it."""

import asyncio
import gc
import weakref
from pathlib import Path

import grpc
import numpy as np
from recurra.openinference import open_inference_pb2_grpc
from recurra.v1 import inference_pb2, inference_pb2_grpc, models_pb2, models_pb2_grpc, sessions_pb2, tensor_pb2
from recurra_server.app import App
from recurra_server.settings import Settings

from tests.support import models
from tests.support.openinference import request


async def test_nothing_holds_a_model_that_is_not_served_any_more(tmp_path: Path) -> None:
    models.publish(tmp_path, "counter", models.counter())
    app = App(Settings(models=tmp_path, port=0, metrics_port=0))
    port, _ = await app.start()
    model = weakref.ref(app.engine.model("counter"))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        await open_inference_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request(np.ones((1, 1))))
        one = [tensor_pb2.Tensor(data=np.float32(1).tobytes())]
        opening = sessions_pb2.OpenSessionRequest(model="counter", session_id="a")
        messages = [
            inference_pb2.StreamStepsRequest(open=opening, inputs=one),
            inference_pb2.StreamStepsRequest(session_id="a", inputs=one),
            inference_pb2.StreamStepsRequest(session_id="a", close=True),
        ]
        stream = inference_pb2_grpc.InferenceServiceStub(channel).StreamSteps(iter(messages))
        replies = [reply.WhichOneof("outcome") async for reply in stream]
        assert replies == ["result", "result", None]
        await models_pb2_grpc.ModelsServiceStub(channel).UnloadModel(models_pb2.UnloadModelRequest(name="counter"))
    async with asyncio.timeout(20):
        while model() is not None:  # the sweep that forgets it comes once a second
            await asyncio.sleep(0.1)
            gc.collect()
    await app.stop()
