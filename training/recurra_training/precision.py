"""Makes a model file smaller: weights in float16 or int8."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from recurra_training.export import graph_digest
from recurra_training.signature import TRAINING_KEY

Precision = Literal["float32", "float16", "int8"]
_SMALL: Final = 16
"""Numbers of a constant that is not worth storing in half."""


def reduce_precision(source: Path, target: Path, precision: Precision) -> None:
    """Write a model file with its weights in another precision.

    float16: weights are stored in half and widened when the file is loaded. ONNX Runtime has no recurrent operators of
    half precision for CPUs, so the arithmetic stays that of float32: the file is half as large, and no faster.

    int8: dynamic quantisation by ONNX Runtime, which has an LSTM and a matrix product of int8 but no GRU or RNN. The
    scale of what is multiplied is taken from all rows and steps of a call, so an answer depends a little on its
    batch-mates; `verify` shows how much.

    Args:
        source: A file of `export_onnx`, in float32.
        target: The file to write; it may be the same.
        precision: float32 copies it.
    """
    if precision == "float32":
        if target != source:
            target.write_bytes(source.read_bytes())
        return
    model = _REDUCED[precision](source)
    metadata = {entry.key: entry.value for entry in model.metadata_props if entry.key.startswith("recurra.")}
    facts = json.loads(metadata[TRAINING_KEY]) | {"precision": precision, "graph_digest": graph_digest(model)}
    helper.set_model_props(model, metadata | {TRAINING_KEY: json.dumps(facts)})
    onnx.save(model, target)


def _half(source: Path) -> onnx.ModelProto:
    model = onnx.load(source)
    graph = model.graph
    casts = []
    for index, initializer in enumerate(graph.initializer):
        values = numpy_helper.to_array(initializer)
        if values.dtype == np.float32 and values.size >= _SMALL:
            name = f"{initializer.name}_half"
            casts.append(helper.make_node("Cast", [name], [initializer.name], name, to=onnx.TensorProto.FLOAT))
            graph.initializer[index].CopyFrom(numpy_helper.from_array(values.astype(np.float16), name))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def _int8(source: Path) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415  # slow to import

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises on the root logger
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            quantize_dynamic(source, path, weight_type=QuantType.QInt8)
            return onnx.load(path)
    finally:
        logging.root.setLevel(level)


_REDUCED: Final[dict[str, Callable[[Path], onnx.ModelProto]]] = {"float16": _half, "int8": _int8}
