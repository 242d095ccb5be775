"""A sequence through the KServe Python client, as its users send it. Reads a job from stdin, prints the answers.

Runs in an environment of its own (see ../test_clients.py): needs kserve alone.
"""

import asyncio
import json
import sys

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest


async def run(job):
    """A call a step; first with elements in the field of their type, then raw."""
    found = {}
    async with InferenceGRPCClient(job["target"]) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(job["model"])
        for number, sequence in enumerate(job["sequences"]):
            outputs = []
            for place, row in enumerate(sequence["x"]):
                tensor = InferInput("x", [1, len(row)], "FP32")
                tensor.set_data_from_numpy(np.array([row], np.float32), binary_data=bool(number % 2))
                parameters = {
                    "sequence_id": sequence["id"],
                    "sequence_start": place == 0,
                    "sequence_end": place == len(sequence["x"]) - 1,
                }
                request = InferRequest(job["model"], [tensor], request_id=f"{number}|{place}", parameters=parameters)
                answer = await client.infer(request)
                assert answer.id == f"{number}|{place}"
                outputs.append(answer.outputs[0].as_numpy()[0].tolist())
            found[str(sequence["id"])] = outputs
        whole = InferInput("x", [len(sequence["x"]), len(row)], "FP32")
        whole.set_data_from_numpy(np.array(sequence["x"], np.float32))
        answer = await client.infer(InferRequest(job["model"], [whole]))
        assert np.allclose(answer.outputs[0].as_numpy(), outputs, atol=1e-5), "without an id: a sequence by itself"
        try:
            await client.infer(InferRequest(job["model"], [tensor], parameters={"sequence_id": sequence["id"]}))
        except grpc.RpcError as error:
            refused = f"{error.code()} {error.details()}"
    return {"outputs": found, "refused": refused}


json.dump(asyncio.run(run(json.load(sys.stdin))), sys.stdout)
