"""Small graphs, good and bad, in ONNX's own text form."""

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import helper, parser

SIGNATURE: dict[str, Any] = {
    "format": 1,
    "inputs": [{"name": "x", "dtype": "float32", "dims": [2], "labels": ["a", "b"]}],
    "outputs": [{"name": "y", "dtype": "float32", "dims": [2]}],
    "states": [{"input_name": "s_in", "output_name": "s_out", "dtype": "float32", "dims": [2]}],
}

HEADER = """
<ir_version: 10, opset_import: ["": 20]>
graph (float[batch, time, 2] x, float[batch, 2] s_in) => (float[batch, time, 2] y, float[batch, 2] s_out) {
    zero = Constant <value_ints = [0]> ()
    one = Constant <value_ints = [1]> ()
    last = Constant <value_int = -1> ()
    before = Unsqueeze(s_in, one)
    sums = CumSum(x, one)
    total = Add(sums, before)
"""

GOOD = """
    y = Tanh(total)
    s_out = Gather <axis = 1> (total, last)
"""
"""y_t = tanh(x_1 + ... + x_t): the state is the sum so far."""


def write(path: Path, body: str = GOOD, header: str = HEADER, **metadata: Any) -> Path:
    """Write a graph with a signature, or with the metadata given (None: none)."""
    model = parser.parse_model(header + body + "}")
    entries = {"recurra.signature": SIGNATURE} | {f"recurra.{key}": value for key, value in metadata.items()}
    helper.set_model_props(
        model,
        {
            key: value if isinstance(value, str) else json.dumps(value)
            for key, value in entries.items()
            if value is not None
        },
    )
    onnx.save(model, path)
    return path
