"""What ONNX Runtime alone answers to a model with a model.yaml, one time step a call: what we are held against."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import yaml
from numpy.typing import NDArray

Array = NDArray[Any]


def step_by_step(path: Path, steps: list[list[Array]], given: dict[str, Array] | None = None) -> list[list[Array]]:
    """Run a sequence with ONNX Runtime alone, one time step a call, by nothing but the YAML.

    Args:
        path: The model.
        steps: For each step its inputs `[*dims]`.
        given: States and constants to begin with, by name.

    Returns:
        For each step its outputs `[*dims]`.
    """
    given = given or {}
    fields = yaml.safe_load(path.with_name("model.yaml").read_text())
    session = _plain(path)

    def begin(spec: dict[str, Any], name: str, value: Any) -> Array:
        plain = np.broadcast_to(np.asarray(given.get(name, value), spec["dtype"]), spec.get("dims", []))
        axis = spec.get("batch_axis", 0)
        return np.array(plain if axis is None else np.expand_dims(plain, axis))

    states = {s["input_name"]: begin(s, s["input_name"], s.get("initial", 0)) for s in fields.get("states", [])}
    constants = {
        c["name"]: begin({"batch_axis": None, **c}, c["name"], c.get("value")) for c in fields.get("constants", [])
    }
    before: dict[str, Array] = {}
    answers = []
    for inputs in steps:
        feeds = {}
        for spec, value in zip(fields["inputs"], inputs, strict=True):
            feeds[spec["name"]] = _placed(spec, _with_context(spec, value, before))
        answered = session.run(None, {**feeds, **states, **constants})
        results = dict(zip([node.name for node in session.get_outputs()], answered, strict=True))
        states = {s["input_name"]: results[s["output_name"]] for s in fields.get("states", [])}
        answers.append([results[s["name"]].reshape(s["dims"]) for s in fields["outputs"]])
    return answers


@functools.cache
def _plain(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _with_context(spec: dict[str, Any], value: Array, before: dict[str, Array]) -> Array:
    """A step `[*dims]`, or `[T, *dims]` where the context lies along the time axis."""
    count, axis = spec.get("context", 0), spec.get("context_axis", 0)
    if not count:
        return value
    if axis is None:
        value, axis = value[np.newaxis], 0
    shape = list(value.shape)
    shape[axis] = count
    joined = np.concatenate([before.get(spec["name"], np.zeros(shape, value.dtype)), value], axis)
    before[spec["name"]] = joined.take(range(joined.shape[axis] - count, joined.shape[axis]), axis)
    return joined


def _placed(spec: dict[str, Any], value: Array) -> Array:
    """A step as the graph has it."""
    along = spec.get("context", 0) and spec.get("context_axis", 0) is None
    axes = {spec.get("batch_axis", 0)}
    if not along:
        axes.add(spec.get("time_axis", 1))
    for axis in sorted(axis for axis in axes if axis is not None):
        value = np.expand_dims(value, axis)
    return value
