"""Writes ONNX's own test cases of one recurrent operator as models to be served: `python ... <operator> <folder>`.

A process of its own for each operator, as `collect_testcases` adds to what earlier calls collected. A case's node
is left as it is, but that its states go in and come out; weights stay inputs of the graph, and become constants.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper
from onnx.backend.test.case.node import collect_testcases

_SLOTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_DTYPES = {"float32": onnx.TensorProto.FLOAT, "int32": onnx.TensorProto.INT32}


def write(operator: str, root: Path) -> None:
    """Write each case as <root>/<case>/1/model.onnx and model.yaml, with case.npz beside them."""
    for case in collect_testcases(operator):
        assert case.model is not None
        node = case.model.graph.node[0]
        if node.op_type == operator:
            folder = root / case.name.removeprefix("test_") / "1"
            folder.mkdir(parents=True)
            _write(case, node, folder)


def _write(case: Any, node: onnx.NodeProto, folder: Path) -> None:
    (inputs, expected), lstm = case.data_sets[0], node.op_type == "LSTM"
    named = dict(zip([name for name in node.input if name], map(np.asarray, inputs), strict=True))
    answers = dict(zip([name for name in node.output if name], map(np.asarray, expected), strict=True))
    layout = next((attribute.i for attribute in node.attribute if attribute.name == "layout"), 0)
    x, (directions, _, features), hidden = named["X"], named["W"].shape, named["R"].shape[-1]
    states = ["h", "c"] if lstm else ["h"]
    slots = _SLOTS if lstm else _SLOTS[:6]
    present = set(named) | {f"initial_{state}" for state in states}
    names = [name if name in present else "" for name in slots]
    given = {name: named.get(f"initial_{name}", np.zeros((directions, x.shape[1 - layout], hidden))) for name in states}

    del node.input[:], node.output[:]
    node.input.extend(names)
    node.output.extend(["Y", "Y_h", "Y_c"] if lstm else ["Y", "Y_h"])
    state_shape = [directions, "B", hidden] if not layout else ["B", directions, hidden]
    constants = {name: value for name, value in named.items() if name in ("W", "R", "B", "P")}
    taken = [_value("X", "float32", ["T", "B", features] if not layout else ["B", "T", features])]
    taken += [_value(name, "float32", list(value.shape)) for name, value in constants.items()]
    taken += [_value(f"initial_{state}", "float32", state_shape) for state in states]
    lengths = [_value("sequence_lens", "int32", ["B"])] if "sequence_lens" in named else []
    nodes, made = [node], ["Y", *(f"Y_{state}" for state in states)]
    shows_cell = "Y_c" in answers and directions == 1
    if shows_cell:  # else only the server would see it
        nodes.append(helper.make_node("Identity", ["Y_c"], ["cell"]))
        made.append("cell")
    results = [_value(name, "float32", None) for name in made]
    graph = helper.make_graph(nodes, case.name, taken + lengths, results)
    opsets = [helper.make_opsetid("", 22 if layout == 0 else 14)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), folder / "model.onnx")

    axis = {"dtype": "float32", "batch_axis": 1 - layout}
    vector = [directions, hidden]
    outputs = [{"name": "Y", "dtype": "float32", "dims": vector, "batch_axis": 2, "time_axis": 0}]
    if shows_cell:
        outputs.append({"name": "cell", "dims": vector, "time_axis": None, **axis})
    fixed: list[dict[str, Any]] = [
        {"name": name, "dtype": "float32", "dims": list(value.shape), "value": value.tolist()}
        for name, value in constants.items()
    ]
    if lengths:  # of each row, in a call of one step
        fixed.append({"name": "sequence_lens", "dtype": "int32", "value": 1, "batch_axis": 0})
    description = {
        "format": 1,
        "inputs": [{"name": "X", "dims": [features], "time_axis": layout, **axis}],
        "outputs": outputs,
        "states": [{"input_name": f"initial_{s}", "output_name": f"Y_{s}", "dims": vector, **axis} for s in states],
        "constants": fixed,
    }
    (folder / "model.yaml").write_text(json.dumps(description))
    reverse = any(attribute.s == b"reverse" for attribute in node.attribute)
    arrays = {"x": x[::-1] if reverse else x, **answers, **{f"initial_{s}": value for s, value in given.items()}}
    np.savez(folder.parent / "case.npz", allow_pickle=False, **arrays)


def _value(name: str, dtype: str, shape: list[Any] | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, _DTYPES[dtype], shape)


if __name__ == "__main__":
    write(sys.argv[1], Path(sys.argv[2]))
