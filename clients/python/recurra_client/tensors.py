"""numpy arrays as `recurra.v1.Tensor` messages and back.

On the wire a tensor is its elements, row-major and little-endian, with their
dtype and shape. On a little-endian machine an array read from a tensor is a
view of the message's bytes: nothing is copied, and it is read-only.
"""

import math
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from recurra.v1 import tensor_pb2

MAX_AXES: Final = 8

_DTYPES: Final[dict[int, np.dtype[Any]]] = {
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT64: np.dtype("<f8"),
    tensor_pb2.DATA_TYPE_INT8: np.dtype("i1"),
    tensor_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    tensor_pb2.DATA_TYPE_INT32: np.dtype("<i4"),
    tensor_pb2.DATA_TYPE_INT64: np.dtype("<i8"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    tensor_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_UINT32: np.dtype("<u4"),
    tensor_pb2.DATA_TYPE_UINT64: np.dtype("<u8"),
    tensor_pb2.DATA_TYPE_BOOL: np.dtype("?"),
}
_NUMBERS: Final = {dtype: tensor_pb2.DataType.ValueType(number) for number, dtype in _DTYPES.items()}


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """The numpy dtype (little-endian) of a `DataType`; ValueError if it names none."""
    try:
        return _DTYPES[data_type]
    except KeyError:
        raise ValueError(f"{data_type} is not a recurra.v1.DataType that names a type") from None


def to_tensor(array: ArrayLike, name: str = "", dtype: DTypeLike | None = None) -> tensor_pb2.Tensor:
    """Write an array as a tensor.

    Args:
        array: Of any shape with at most 8 axes.
        name: The model's name for the input; may be empty where the model has only one.
        dtype: Convert to this first. None keeps the array's own.

    Raises:
        ValueError: The dtype has no `DataType` (complex, object, text, dates ...), or there are too many axes.
    """
    values = np.asarray(array, dtype)
    little_endian = values.dtype.newbyteorder("<")
    number = _NUMBERS.get(little_endian)
    if number is None:
        raise ValueError(f"an array of dtype {values.dtype} cannot be sent; use a float, integer or bool dtype")
    if values.ndim > MAX_AXES:
        raise ValueError(f"an array of {values.ndim} axes cannot be sent; at most {MAX_AXES} can")
    data = values.astype(little_endian, copy=False).tobytes()
    return tensor_pb2.Tensor(name=name, dtype=number, shape=values.shape, data=data)


def to_array(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """Read a tensor as an array: a read-only view of its bytes (`.copy()` it to change it).

    Raises:
        ValueError: The tensor's dtype, shape and number of bytes do not fit each other.
    """
    dtype = numpy_dtype(tensor.dtype)
    shape = tuple(tensor.shape)
    data = tensor.data
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected or any(size < 0 for size in shape):
        raise ValueError(f"tensor {tensor.name!r} of {dtype} and shape {list(shape)} has {len(data)} bytes")
    return np.frombuffer(data, dtype).reshape(shape)
