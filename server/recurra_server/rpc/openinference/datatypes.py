"""The protocol's names of element types."""

from typing import Final

from recurra.openinference import model_config_pb2

from recurra_server.engine.signature import Dtype

NAMES: Final[dict[Dtype, str]] = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
}
# Where InferTensorContents has the elements of a type; there is no place for FP16.
CONTENTS: Final[dict[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}


def number_of(dtype: Dtype) -> model_config_pb2.DataType.ValueType:
    """The number that a model's configuration has for an element type."""
    return model_config_pb2.DataType.Value(f"TYPE_{NAMES[dtype]}")
