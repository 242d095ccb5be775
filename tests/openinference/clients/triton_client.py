"""Sequences through tritonclient.grpc, as its users send them. Reads a job from stdin, prints the answers.

Runs in an environment of its own (see ../test_clients.py): needs tritonclient alone.
"""

import asyncio
import json
import queue
import sys

import numpy as np
import tritonclient.grpc as blocking
from tritonclient.grpc import aio


def steps(job):
    """The steps of all sequences, in turn: (id, the step's place, its tensors and its options)."""
    length = len(next(iter(job["sequences"]))["x"])
    for place in range(length):
        for sequence in job["sequences"]:
            x = np.array([sequence["x"][place]], np.float32)
            tensor = blocking.InferInput("x", x.shape, "FP32")
            tensor.set_data_from_numpy(x)
            yield {
                "model_name": job["model"],
                "inputs": [tensor],
                "outputs": [blocking.InferRequestedOutput("y")],
                "request_id": f"{sequence['id']}|{place}",
                "sequence_id": sequence["id"],
                "sequence_start": place == 0,
                "sequence_end": place == length - 1,
            }


def collect(job, results):
    """The outputs of each sequence in the order they came, by the id that was handed back."""
    found = {str(sequence["id"]): [] for sequence in job["sequences"]}
    for result in results:
        sequence, place = result.get_response().id.split("|")
        assert len(found[sequence]) == int(place), "the answers of a sequence come in the order of its steps"
        found[sequence].append(result.as_numpy("y")[0].tolist())
    return found


def unary(job):
    """A call a step."""
    with blocking.InferenceServerClient(job["target"]) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(job["model"])
        assert not client.is_model_ready("nothing")
        assert client.get_model_config(job["model"]).config.HasField("sequence_batching")
        results = [client.infer(**step) for step in steps(job)]
        (statistics,) = client.get_inference_statistics(job["model"], "1").model_stats
        assert statistics.inference_stats.success.count >= len(results)
        listed = client.get_model_repository_index(as_json=True)["models"]
        assert job["model"] in [model["name"] for model in listed]
        late = next(steps(job))
        try:
            client.infer(**{**late, "sequence_start": False})
        except blocking.InferenceServerException as error:
            refused = f"{error.status()} {error.message()}"
        return collect(job, results), refused


def stream(job):
    """All over one stream, none waits for another."""
    answers = queue.Queue()
    with blocking.InferenceServerClient(job["target"]) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        sent = 0
        for step in steps(job):
            client.async_stream_infer(**step, enable_empty_final_response=True)
            sent += 1
        results = []
        for _ in range(sent):
            result, error = answers.get(timeout=30)
            assert error is None, error
            assert result.get_response().parameters["triton_final_response"].bool_param
            results.append(result)
        late = next(steps(job))
        client.async_stream_infer(**{**late, "sequence_start": False})
        _, error = answers.get(timeout=30)
        refused = str(error)
        client.async_stream_infer(**late)  # the stream is still good
        result, error = answers.get(timeout=30)
        assert error is None, error
        client.stop_stream()
        return collect(job, results), refused


async def stream_aio(job):
    """The same with asyncio."""

    async def requests():
        for step in steps(job):
            yield step
        yield {**next(steps(job)), "sequence_start": False}

    async with aio.InferenceServerClient(job["target"]) as client:
        results, refused = [], ""
        async for result, error in client.stream_infer(requests()):
            if error is None:
                results.append(result)
            else:
                refused = str(error)
        return collect(job, results), refused


def main():
    """Do the job."""
    job = json.load(sys.stdin)
    way = {"unary": unary, "stream": stream, "aio": lambda job: asyncio.run(stream_aio(job))}[job["way"]]
    outputs, refused = way(job)
    json.dump({"outputs": outputs, "refused": refused}, sys.stdout)


main()
