"""What a caller may give to a model, and how the answer looks."""

from typing import Any

import numpy as np
import pytest
from recurra.v1 import models_pb2, tensor_pb2
from recurra_client import InputError, to_array
from recurra_client.codec import Codec

FLOAT, INT, BYTE = tensor_pb2.DATA_TYPE_FLOAT32, tensor_pb2.DATA_TYPE_INT64, tensor_pb2.DATA_TYPE_UINT8


def spec(name: str, dtype: tensor_pb2.DataType.ValueType = FLOAT, *dims: int) -> models_pb2.TensorSpec:
    return models_pb2.TensorSpec(name=name, dtype=dtype, dims=dims)


ONE = Codec(models_pb2.Model(name="one", inputs=[spec("x", FLOAT, 2)], outputs=[spec("y", FLOAT, 1)]))
WORD = Codec(models_pb2.Model(name="word", inputs=[spec("token", INT)], outputs=[spec("y", FLOAT, 1)]))
BYTES = Codec(models_pb2.Model(name="bytes", inputs=[spec("b", BYTE, 2)], outputs=[spec("y", FLOAT, 1)]))
TWO = Codec(
    models_pb2.Model(
        name="two", inputs=[spec("x", FLOAT, 2), spec("k", INT)], outputs=[spec("y", FLOAT, 1), spec("z", INT)]
    )
)


@pytest.mark.parametrize("x", [[1, 2], (1.0, 2.0), np.array([1, 2], np.int8), np.array([1, 2], "f8"), {"x": [1, 2]}])
def test_numbers_are_converted_to_the_dtype_of_the_model(x: Any) -> None:
    (tensor,) = ONE.step(x)
    assert tensor.dtype == FLOAT
    assert to_array(tensor).tolist() == [1, 2]


def test_a_sequence_has_a_time_axis() -> None:
    (tensor,), length = ONE.sequence(np.zeros((5, 2)))
    assert length == 5
    assert list(tensor.shape) == [5, 2]
    (tensor,), length = ONE.sequence(np.zeros((3, 5, 2)), ("B", "T"))
    assert length == 3
    assert list(tensor.shape) == [3, 5, 2]


def test_a_dict_in_gives_a_dict_out() -> None:
    tensors = TWO.step({"k": 3, "x": [1, 2]})
    assert {tensor.name: to_array(tensor).tolist() for tensor in tensors} == {"x": [1, 2], "k": 3}
    outputs = TWO.outputs(tensors, named=True)
    assert isinstance(outputs, dict)
    assert set(outputs) == {"x", "k"}


@pytest.mark.parametrize(
    ("codec", "x", "reason", "says"),
    [
        (ONE, [1, 2, 3], "INPUT_SHAPE", r"shape \[3\], expected \[2\]"),
        (ONE, [[1, 2]], "INPUT_SHAPE", "use `steps`"),
        (ONE, [[1, 2], [3]], "INPUT_SHAPE", "not an array"),
        (ONE, ["a", "b"], "INPUT_DTYPE", "do not all fit into float32"),
        (ONE, [1j, 2j], "INPUT_DTYPE", "do not all fit"),
        (ONE, {"X": [1, 2]}, "INPUT_NAME", "'x' is missing"),
        (ONE, {"x": [1, 2], "z": 1}, "INPUT_NAME", "no input 'z'"),
        (WORD, 1.5, "INPUT_DTYPE", "float64"),
        (BYTES, [1, 300], "INPUT_DTYPE", "do not all fit into uint8"),
        (BYTES, [1, -1], "INPUT_DTYPE", "do not all fit into uint8"),
        (TWO, [1, 2], "INPUT_NAME", "as a dict by name"),
    ],
)
def test_what_does_not_fit_is_refused_as_the_server_would(codec: Codec, x: Any, reason: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        codec.step(x)
    assert caught.value.reason == reason


def test_a_step_given_as_a_sequence_is_told_apart() -> None:
    with pytest.raises(InputError, match="use `step`"):
        ONE.sequence([1, 2])


def test_inputs_of_different_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="different lengths"):
        TWO.sequence({"x": np.zeros((3, 2)), "k": [1, 2]})


def test_whole_numbers_that_fit_are_taken_from_any_integer() -> None:
    (tensor,) = BYTES.step([0, 255])
    assert to_array(tensor).tolist() == [0, 255]
    (tensor,) = WORD.step(np.uint8(7))
    assert to_array(tensor).tolist() == 7


def test_states_are_named_and_checked() -> None:
    state = models_pb2.StateSpec(input_name="h", dtype=FLOAT, dims=[1, 2])
    codec = Codec(models_pb2.Model(states=[state]))
    (tensor,) = codec.states({"h": [[1, 2]]})
    assert to_array(tensor).tolist() == [[1, 2]]
    with pytest.raises(InputError, match="no state 'c'"):
        codec.states({"c": [[1, 2]]})
    with pytest.raises(InputError, match=r"expected \[1, 2\]"):
        codec.states({"h": [1, 2]})
