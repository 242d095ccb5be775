"""Reads a model file and holds its graph against its own signature (docs/model-format.md)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from recurra_training.errors import SignatureError
from recurra_training.export import graph_digest
from recurra_training.signature import TRAINING_KEY, Dtype, Signature, TensorSpec, read_signature

_FREE: Final = ("batch", "time")


def read_model(path: Path) -> Signature:
    """Read a model file's signature, and check that it fits the graph.

    Raises:
        SignatureError: The file is no ONNX model, has no signature, or its graph differs from it; the message says
            where and how.
    """
    if not path.is_file():
        raise SignatureError(f"{path} is not a file; give the path of a model.onnx")
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        raise SignatureError(f"{path} is not an ONNX file") from None
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    signature = read_signature(metadata)
    _check_sense(signature)
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    dtypes: dict[str, Dtype] = {spec.name: spec.dtype for spec in (*signature.inputs, *signature.outputs)}
    for state in signature.states:
        dtypes |= {state.input_name: state.dtype, state.output_name: state.dtype}
    _check_values("input", inputs, signature.input_shapes(), dtypes)
    _check_values("output", model.graph.output, signature.output_shapes(), dtypes)
    _check_self_contained(model)
    _check_digest(model, metadata)
    return signature


def _check_sense(signature: Signature) -> None:
    if not signature.inputs or not signature.outputs:
        raise SignatureError("a signature needs at least one input and one output")
    for spec in (*signature.inputs, *signature.outputs):
        rank = len(spec.dims) + len(spec.axes)
        if spec.batch_axis == spec.time_axis or not all(0 <= axis < rank for axis in spec.axes):
            raise SignatureError(f"{spec.name}: batch_axis and time_axis must be two different axes below {rank}")
        _check_labels(spec)
    for state in signature.states:
        if not 0 <= state.batch_axis <= len(state.dims):
            raise SignatureError(f"{state.input_name}: batch_axis must be from 0 to {len(state.dims)}")
    names = [spec.name for spec in signature.inputs] + [state.input_name for state in signature.states]
    answers = [spec.name for spec in signature.outputs] + [state.output_name for state in signature.states]
    for name in (*names, *answers):
        if names.count(name) > 1 or answers.count(name) > 1:
            raise SignatureError(f"{name!r} stands twice in the signature")
    feedback = signature.feedback
    if feedback and (feedback.input not in names or feedback.output not in answers):
        raise SignatureError("feedback must name an output and an input of the model")


def _check_labels(spec: TensorSpec) -> None:
    width = spec.dims[-1] if spec.dims else 1
    of_classes = not spec.dims and np.dtype(spec.dtype).kind in "iu"  # then the labels name the classes
    if spec.labels and len(spec.labels) != width and not of_classes:
        raise SignatureError(f"{spec.name}: {len(spec.labels)} labels for {width} entries")
    if len(spec.units) not in (0, 1, width):
        raise SignatureError(f"{spec.name}: {len(spec.units)} units for {width} entries")


def _check_values(
    what: str,
    values: Sequence[onnx.ValueInfoProto],
    shapes: Mapping[str, list[int | str]],
    dtypes: Mapping[str, Dtype],
) -> None:
    found = [value.name for value in values]
    if sorted(found) != sorted(shapes):
        raise SignatureError(f"the graph's {what}s are {', '.join(found)}; the signature's are {', '.join(shapes)}")
    for value in values:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        if dtype != dtypes[value.name]:
            raise SignatureError(f"{what} {value.name} is {dtype} in the graph, {dtypes[value.name]} in the signature")
        sizes = [dim.dim_value if dim.HasField("dim_value") else "free" for dim in tensor.shape.dim]
        wanted = ["free" if size in _FREE else size for size in shapes[value.name]]
        if sizes != wanted:
            raise SignatureError(
                f"{what} {value.name} is {_shape(sizes)} in the graph, {_shape(wanted)} by the signature"
            )


def _check_self_contained(model: onnx.ModelProto) -> None:
    for initializer in model.graph.initializer:
        if initializer.data_location == onnx.TensorProto.EXTERNAL:
            raise SignatureError(f"the weights {initializer.name} lie in another file; a model must be one file")


def _check_digest(model: onnx.ModelProto, metadata: Mapping[str, str]) -> None:
    try:
        said = json.loads(metadata.get(TRAINING_KEY, "{}")).get("graph_digest")
    except (ValueError, AttributeError):
        raise SignatureError(f"{TRAINING_KEY} is not a JSON object") from None
    if said is not None and said != graph_digest(model):
        raise SignatureError("graph_digest is not that of the graph: it was changed after it was exported")


def _shape(sizes: Sequence[int | str]) -> str:
    return "[" + ", ".join(str(size) for size in sizes) + "]"
