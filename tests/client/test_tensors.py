"""Arrays as tensors and back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from recurra.v1 import tensor_pb2
from recurra_client.tensors import numpy_dtype, to_array, to_tensor

DTYPES = [tensor_pb2.DataType.Name(n) for n in tensor_pb2.DataType.values() if n]
numeric = st.one_of(
    npst.floating_dtypes(sizes=(16, 32, 64), endianness="="),
    npst.integer_dtypes(endianness="="),
    npst.unsigned_integer_dtypes(endianness="="),
    npst.boolean_dtypes(),
)
shapes = npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)


@given(npst.arrays(numeric, shapes))
def test_an_array_comes_back_as_it_was(array: NDArray[np.generic]) -> None:
    tensor = tensor_pb2.Tensor.FromString(to_tensor(array, "x").SerializeToString())
    back = to_array(tensor)
    assert back.dtype == array.dtype
    assert back.shape == array.shape
    assert back.tobytes() == array.tobytes()
    assert tensor.name == "x"


@given(npst.arrays(numeric, npst.array_shapes(min_dims=2, max_dims=3, max_side=4)))
def test_bytes_are_row_major_and_little_endian_whatever_the_array_in_memory(array: NDArray[np.generic]) -> None:
    expected = to_tensor(array)
    assert expected.data == array.astype(array.dtype.newbyteorder("<")).tobytes("C")
    assert to_tensor(np.asfortranarray(array)) == expected
    assert to_tensor(array.astype(array.dtype.newbyteorder(">"))) == expected
    assert to_tensor(np.stack([array, array], axis=-1)[..., 0]) == expected


@pytest.mark.parametrize("name", DTYPES)
def test_every_data_type_of_the_proto_is_known(name: str) -> None:
    dtype = numpy_dtype(tensor_pb2.DataType.Value(name))
    assert name == f"DATA_TYPE_{dtype.name.upper()}"
    assert to_tensor(np.zeros(2, dtype)).dtype == tensor_pb2.DataType.Value(name)


def test_numbers_and_lists_are_arrays_too() -> None:
    assert to_array(to_tensor(3.5)).shape == ()
    assert to_array(to_tensor([[1, 2], [3, 4]], dtype="float32")).tolist() == [[1, 2], [3, 4]]


def test_an_array_from_a_tensor_is_a_read_only_view() -> None:
    array = to_array(to_tensor(np.arange(4)))
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([None]), np.zeros((1,) * 9)])
def test_what_cannot_be_sent_is_refused(array: NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        to_tensor(array)


@pytest.mark.parametrize(
    "tensor",
    [
        tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[2], data=b"\0" * 7),
        tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=[-1, -1], data=b"\0" * 4),
        tensor_pb2.Tensor(shape=[1], data=b"\0"),
    ],
)
def test_a_tensor_that_contradicts_itself_is_refused(tensor: tensor_pb2.Tensor) -> None:
    with pytest.raises(ValueError, match=r"bytes|not a recurra\.v1\.DataType"):
        to_array(tensor)
