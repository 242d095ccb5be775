"""Small ONNX models with the metadata of docs/model-format.md, written without PyTorch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[Any]
_OPSET = 20
_NAMES = {"float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


def publish(root: Path, name: str, model: onnx.ModelProto, version: str = "1") -> Path:
    """Put a model into a repository."""
    path = root / name / version / "model.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path


def lstm(features: int = 16, hidden: int = 128, outputs: int = 1, *, seed: int = 0, **fields: Any) -> onnx.ModelProto:
    """An LSTM with a linear layer behind it: x [B, T, features] -> y [B, T, outputs]."""
    return _recurrent("LSTM", 4, features, hidden, outputs, seed, fields)


def gru(features: int = 4, hidden: int = 8, outputs: int = 2, *, seed: int = 0, **fields: Any) -> onnx.ModelProto:
    """A GRU with a linear layer behind it."""
    return _recurrent("GRU", 3, features, hidden, outputs, seed, fields)


def rnn(features: int = 4, hidden: int = 8, outputs: int = 2, *, seed: int = 0, **fields: Any) -> onnx.ModelProto:
    """A plain RNN with a linear layer behind it."""
    return _recurrent("RNN", 1, features, hidden, outputs, seed, fields)


def counter(**fields: Any) -> onnx.ModelProto:
    """A running sum, exact for whole numbers: y_t = s_t = s_(t-1) + x_t. Any slip of a state shows in the answer."""
    nodes = [
        helper.make_node("CumSum", ["x", "one"], ["sums"]),
        helper.make_node("Unsqueeze", ["s_in", "one"], ["s_3d"]),
        helper.make_node("Add", ["sums", "s_3d"], ["y"]),
        helper.make_node("Gather", ["y", "last"], ["s_out"], axis=1),
    ]
    constants = {"one": np.array(1, np.int64), "last": np.array(-1, np.int64)}
    nodes[1].input[1] = "one_1d"
    constants["one_1d"] = np.array([1], np.int64)
    return _model(
        nodes,
        constants,
        inputs=[_tensor("x", [1])],
        outputs=[_tensor("y", [1])],
        states=[_state("s_in", "s_out", [1])],
        fields=fields,
    )


def slow_counter(work: int, **fields: Any) -> onnx.ModelProto:
    """The running sum, with a product of two [work, work] matrices in each call that makes no difference."""
    model = counter(**fields)
    summing, *rest = model.graph.node
    summing.output[0] = "only_sums"
    work_nodes = [
        helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),  # so that it is no constant
        helper.make_node("Mul", ["matrix", "largest"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "matrix"], ["product"]),
        helper.make_node("ReduceMax", ["product"], ["some"], keepdims=0),
        helper.make_node("Mul", ["some", "nothing"], ["none"]),
        helper.make_node("Add", ["only_sums", "none"], ["sums"]),
    ]
    nodes = [summing, *work_nodes, *rest]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    matrix = _weights(np.random.default_rng(0), work, work)
    model.graph.initializer.append(numpy_helper.from_array(matrix, "matrix"))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.float32), "nothing"))
    return model


def watched(**fields: Any) -> onnx.ModelProto:
    """The running sum, and as optional outputs twice it, and what a table of 10 has at that place: it fails beyond."""
    model = with_double(counter(**fields))
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["y"], ["place"], to=TensorProto.INT64),
            helper.make_node("Gather", ["table", "place"], ["entry"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(100 + np.arange(10, dtype=np.float32), "table"))
    _add_output(model, 2, _tensor("entry", [1], optional=True))
    return model


def with_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model with twice its output y as an optional output, in front of y."""
    model.graph.node.append(helper.make_node("Add", ["y", "y"], ["double"]))
    spec = json.loads(model.metadata_props[0].value)["outputs"][0]
    _add_output(model, 0, {**spec, "name": "double", "optional": True})
    return model


def _add_output(model: onnx.ModelProto, place: int, spec: dict[str, Any]) -> None:
    model.graph.output.insert(place, _value(spec["name"], spec))
    signature = json.loads(model.metadata_props[0].value)
    signature["outputs"].insert(place, spec)
    helper.set_model_props(model, {"recurra.signature": json.dumps(signature)})


def sieve(**fields: Any) -> onnx.ModelProto:
    """Answers its input, but for the steps at which the first session has a zero: so its answer may be too short."""
    nodes = [
        helper.make_node("Gather", ["x", "zero"], ["first"], axis=0),
        helper.make_node("Squeeze", ["first", "last"], ["values"]),
        helper.make_node("Cast", ["values"], ["kept"], to=TensorProto.BOOL),
        helper.make_node("Compress", ["x", "kept"], ["y"], axis=1),
    ]
    constants = {"zero": np.array(0, np.int64), "last": np.array([-1], np.int64)}
    tensors = {"inputs": [_tensor("x", [1])], "outputs": [_tensor("y", [1])]}
    return _model(nodes, constants, **tensors, states=[], fields=fields)


def feed_forward(features: int = 4, outputs: int = 2, *, seed: int = 0, **fields: Any) -> onnx.ModelProto:
    """One linear layer: no states."""
    rng = np.random.default_rng(seed)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    return _model(
        nodes,
        {"w": _weights(rng, features, outputs)},
        inputs=[_tensor("x", [features])],
        outputs=[_tensor("y", [outputs])],
        states=[],
        fields=fields,
    )


def letters(classes: int = 5, *, seed: int = 0, **fields: Any) -> onnx.ModelProto:
    """Looks up a class index, mixes it into a state and answers logits; fails on an index that it does not know."""
    rng = np.random.default_rng(seed)
    inner = _recurrent_nodes("LSTM", "embedded", "y", 1)
    nodes = [helper.make_node("Gather", ["table", "token"], ["embedded"]), *inner]
    weights = {"table": _weights(rng, classes, 6), **_recurrent_weights(rng, "LSTM", 4, 6, 8, classes)}
    feedback = {"output": "y", "input": "token", "sampled": True}
    return _model(
        nodes,
        weights,
        inputs=[_tensor("token", [], "int64")],
        outputs=[_tensor("y", [classes], kind="logit")],
        states=_recurrent_states("LSTM", 8),
        fields={"feedback": feedback, **fields},
    )


def _recurrent(
    op: str, gates: int, features: int, hidden: int, outputs: int, seed: int, fields: dict[str, Any]
) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    return _model(
        _recurrent_nodes(op, "x", "y", 1),
        _recurrent_weights(rng, op, gates, features, hidden, outputs),
        inputs=[_tensor("x", [features])],
        outputs=[_tensor("y", [outputs])],
        states=_recurrent_states(op, hidden),
        fields=fields,
    )


def _recurrent_nodes(op: str, source: str, target: str, layers: int) -> list[onnx.NodeProto]:
    """The cell works time-major, the graph batch-major."""
    states = ["h_in", "c_in"] if op == "LSTM" else ["h_in"]
    results = ["h_out", "c_out"] if op == "LSTM" else ["h_out"]
    return [
        helper.make_node("Transpose", [source], ["time_major"], perm=[1, 0, 2]),
        helper.make_node(op, ["time_major", "w", "r", "b", "", *states], ["hs", *results], hidden_size=0),
        helper.make_node("Squeeze", ["hs", "axis_1"], ["hs_3d"]),
        helper.make_node("Transpose", ["hs_3d"], ["hs_bt"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["hs_bt", "v"], [target]),
    ]


def _recurrent_weights(
    rng: np.random.Generator, op: str, gates: int, features: int, hidden: int, outputs: int
) -> dict[str, Array]:
    return {
        "w": _weights(rng, 1, gates * hidden, features),
        "r": _weights(rng, 1, gates * hidden, hidden),
        "b": _weights(rng, 1, 2 * gates * hidden),
        "v": _weights(rng, hidden, outputs),
        "axis_1": np.array([1], np.int64),
    }


def _recurrent_states(op: str, hidden: int) -> list[dict[str, Any]]:
    names = ["h", "c"] if op == "LSTM" else ["h"]
    return [_state(f"{name}_in", f"{name}_out", [1, hidden], batch_axis=1) for name in names]


def _weights(rng: np.random.Generator, *shape: int) -> Array:
    return rng.uniform(-0.4, 0.4, shape).astype(np.float32)


def _tensor(name: str, dims: list[int], dtype: str = "float32", **fields: Any) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "dims": dims, **fields}


def _state(input_name: str, output_name: str, dims: list[int], batch_axis: int = 0) -> dict[str, Any]:
    return {
        "input_name": input_name,
        "output_name": output_name,
        "dtype": "float32",
        "dims": dims,
        "batch_axis": batch_axis,
    }


def _model(
    nodes: list[onnx.NodeProto],
    constants: dict[str, Array],
    *,
    inputs: list[dict[str, Any]],
    outputs: list[dict[str, Any]],
    states: list[dict[str, Any]],
    fields: dict[str, Any],
) -> onnx.ModelProto:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.name == "hidden_size":
                attribute.i = constants["r"].shape[-1]
    graph = helper.make_graph(
        nodes,
        "test",
        [_value(spec["name"], spec) for spec in inputs] + [_value(state["input_name"], state) for state in states],
        [_value(spec["name"], spec) for spec in outputs] + [_value(state["output_name"], state) for state in states],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=10)
    signature = {"format": 1, "inputs": inputs, "outputs": outputs, "states": states, **fields}
    helper.set_model_props(model, {"recurra.signature": json.dumps(signature)})
    return model


def _value(name: str, spec: dict[str, Any]) -> onnx.ValueInfoProto:
    shape: list[str | int] = list(spec["dims"])
    shape.insert(spec.get("batch_axis", 0), "batch")
    if "name" in spec:
        shape.insert(1, "time")
    return helper.make_tensor_value_info(name, _NAMES[spec["dtype"]], shape)
