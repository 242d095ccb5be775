"""A tool that knows nothing of the protos calls both APIs, from what reflection tells."""

import base64
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ServerProcess

pytestmark = pytest.mark.e2e


def curl(server: ServerProcess, method: str, *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """`buf curl`, which works as grpcurl does: JSON in, JSON out, one call."""
    command = [str(Path(sys.executable).with_name("buf")), "curl", "--protocol", "grpc", "--http2-prior-knowledge"]
    data = "\n".join(json.dumps(message) for message in messages)
    command += ["--data", "@-", f"http://{server.target}/{method}"]
    done = subprocess.run(command, input=data, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    decoder, answers, text = json.JSONDecoder(), [], done.stdout.strip()
    while text:
        answer, end = decoder.raw_decode(text)
        answers.append(answer)
        text = text[end:].lstrip()
    return answers


def floats(*values: float) -> str:
    """Little-endian, as JSON has bytes."""
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def test_our_own_api(server: ServerProcess) -> None:
    (described,) = curl(server, "recurra.v1.ModelsService/GetModel", {"name": "counter"})
    assert described["model"]["digest"].startswith("sha256:")
    first = {"open": {"model": "counter"}, "inputs": [{"data": floats(2)}]}
    answers = curl(server, "recurra.v1.InferenceService/StreamSteps", first, {"inputs": [{"data": floats(3)}]})
    assert [answer["result"]["outputs"][0]["data"] for answer in answers] == [floats(2), floats(5)]


def test_the_open_inference_protocol(server: ServerProcess) -> None:
    (config,) = curl(server, "inference.GRPCInferenceService/ModelConfig", {"name": "counter"})
    assert config["config"]["parameters"]["digest"]["stringValue"].startswith("sha256:")
    steps = [
        {
            "modelName": "counter",
            "parameters": {"sequence_id": {"int64Param": 77}, "sequence_start": {"boolParam": value == 2}},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "contents": {"fp32Contents": [value]}}],
        }
        for value in (2, 3)
    ]
    answers = curl(server, "inference.GRPCInferenceService/ModelStreamInfer", *steps)
    assert [answer["inferResponse"]["rawOutputContents"][0] for answer in answers] == [floats(2), floats(5)]
