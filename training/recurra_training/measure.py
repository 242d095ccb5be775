"""What a model file is worth: how good its answers are, how large and how fast it is."""

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import torch

from recurra_training import metrics
from recurra_training.contract import read_model
from recurra_training.data.recording import Recording
from recurra_training.data.segments import pad
from recurra_training.data.task import Task
from recurra_training.precision import Precision
from recurra_training.signature import Signature

_ROWS: Final = 256
_CALLS: Final = 40
_ROUNDS: Final = 15


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _initial(signature: Signature, batch: int) -> dict[str, np.ndarray[Any, Any]]:
    return {
        state.input_name: np.full(
            [batch if size == "batch" else size for size in state.shape()], state.initial, state.dtype
        )
        for state in signature.states
    }


def evaluate_file(path: Path, recordings: Sequence[Recording], task: Task) -> dict[str, float]:
    """The figures of a model file with one input on whole recordings; as `metrics.evaluate` has them of a network."""
    signature, session = read_model(path), _session(path)
    tally = metrics.Tally(task.output.labels or [""] * task.output.dims[0], classes=task.is_classes)
    for start in range(0, len(recordings), _ROWS):
        segment = pad(recordings[start : start + _ROWS])
        feed = {signature.inputs[0].name: segment.x.numpy()} | _initial(signature, len(segment.x))
        y = torch.from_numpy(session.run([signature.outputs[0].name], feed)[0])
        tally.add(y.clamp(min=1e-30).log() if task.output.kind == "probability" else y, segment)
    return tally.figures()


def seconds_a_call(paths: Mapping[Precision, Path], batch: int) -> dict[Precision, float]:
    """Seconds of a call with one step of `batch` sessions: the median, each file's calls in turn with the others'."""
    calls = {}
    for name, path in paths.items():
        signature, session = read_model(path), _session(path)
        x = signature.inputs[0]
        shape: list[Any] = [
            {"batch": batch, "time": 1}.get(size, size) if isinstance(size, str) else size for size in x.shape()
        ]
        calls[name] = (session, {x.name: np.zeros(shape, x.dtype)} | _initial(signature, batch))
    times: dict[Precision, list[float]] = {name: [] for name in paths}
    for _ in range(_ROUNDS):
        for name, (session, feed) in calls.items():
            began = time.perf_counter()
            for _ in range(_CALLS):
                session.run(None, feed)
            times[name].append((time.perf_counter() - began) / _CALLS)
    return {name: statistics.median(each) for name, each in times.items()}
