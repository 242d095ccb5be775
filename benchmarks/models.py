"""The models that are measured, written without PyTorch, with the metadata of docs/model-format.md."""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

FEATURES: Final = 16
INSIDE: Final = "inside"
"""An optional output."""
Array = NDArray[np.float32]


def publish(root: Path, name: str, hidden: int, layers: int = 1, *, inside: bool = False) -> Path:
    """Write an LSTM with a linear layer behind it, x [B, T, 16] -> y [B, T, 1], into a model repository.

    Its states are h and c, one pair for each layer, all of shape [1, B, hidden]. With `inside`, an optional output
    tells the h of every step of the first layer, computed a second time, as gates are.
    """
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {"axis_1": np.array([1], np.int64), "v": _weights(rng, hidden, 1)}
    nodes = [helper.make_node("Transpose", ["x"], ["in_0"], perm=[1, 0, 2])]  # the cell works time-major
    states = []
    for layer in range(layers):
        width = FEATURES if layer == 0 else hidden
        constants |= {
            f"w_{layer}": _weights(rng, 1, 4 * hidden, width),
            f"r_{layer}": _weights(rng, 1, 4 * hidden, hidden),
            f"b_{layer}": _weights(rng, 1, 8 * hidden),
        }
        weights = [f"w_{layer}", f"r_{layer}", f"b_{layer}"]
        cell = [f"in_{layer}", *weights, "", f"h_{layer}", f"c_{layer}"]
        nodes += [
            helper.make_node("LSTM", cell, [f"all_{layer}", f"h_{layer}_out", f"c_{layer}_out"], hidden_size=hidden),
            helper.make_node("Squeeze", [f"all_{layer}", "axis_1"], [f"in_{layer + 1}"]),
        ]
        states += [f"h_{layer}", f"c_{layer}"]
    nodes += [
        helper.make_node("Transpose", [f"in_{layers}"], ["batch_major"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["batch_major", "v"], ["y"]),
    ]
    more: list[tuple[str, int]] = []
    if inside:
        more.append((INSIDE, hidden))
        nodes += [
            helper.make_node("LSTM", ["in_0", "w_0", "r_0", "b_0", "", "h_0", "c_0"], ["again"], hidden_size=hidden),
            helper.make_node("Squeeze", ["again", "axis_1"], ["again_3d"]),
            helper.make_node("Transpose", ["again_3d"], [INSIDE], perm=[1, 0, 2]),
        ]
    graph = helper.make_graph(
        nodes,
        name,
        [_value("x", ["batch", "time", FEATURES]), *(_value(state, [1, "batch", hidden]) for state in states)],
        [
            _value("y", ["batch", "time", 1]),
            *(_value(output, ["batch", "time", width]) for output, width in more),
            *(_value(f"{state}_out", [1, "batch", hidden]) for state in states),
        ],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    signature = {
        "format": 1,
        "inputs": [{"name": "x", "dtype": "float32", "dims": [FEATURES]}],
        "outputs": [
            {"name": "y", "dtype": "float32", "dims": [1]},
            *({"name": output, "dtype": "float32", "dims": [width], "optional": True} for output, width in more),
        ],
        "states": [
            {"input_name": state, "output_name": f"{state}_out", "dtype": "float32", "dims": [1, hidden],
             "batch_axis": 1}
            for state in states
        ],
    }  # fmt: skip
    helper.set_model_props(model, {"recurra.signature": json.dumps(signature)})
    path = root / name / "1" / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


class LocalModel:
    """The same model in ONNX Runtime, with nothing round it: one thread, as the server runs it."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._states = {spec.name: spec.shape[-1] for spec in self._session.get_inputs() if spec.name != "x"}

    def start(self, rows: int) -> dict[str, Array]:
        """The states before the first step."""
        return {name: np.zeros((1, rows, hidden), np.float32) for name, hidden in self._states.items()}

    def run(self, x: Array, states: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        """Apply x [B, T, 16]: the outputs [B, T, 1], and the next states."""
        y, *after = self._session.run(None, {"x": x, **states})
        return y, dict(zip(states, after, strict=True))


def _weights(rng: np.random.Generator, *shape: int) -> Array:
    return np.asarray(rng.uniform(-1, 1, shape) / np.sqrt(shape[-1]), np.float32)


def _value(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
