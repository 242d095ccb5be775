"""A caller's arrays as the tensors of one model, and the model's answers as arrays.

The rule a caller sees: an array in gives an array out, for a model with one input where one output
is answered; a dict of arrays by name in gives a dict out, for any model.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from recurra.v1 import models_pb2, tensor_pb2

from recurra_client.errors import invalid_input
from recurra_client.tensors import numpy_dtype, to_array, to_tensor

Inputs = ArrayLike | Mapping[str, ArrayLike]
Outputs = NDArray[Any] | dict[str, NDArray[Any]]


class Codec:
    """Encodes the inputs of one model, converting them to its dtypes, and decodes its outputs.

    Attributes:
        model: Its description.
        wanted: The outputs to ask for by name; empty for those that are answered by default.
    """

    def __init__(self, model: models_pb2.Model, wanted: Sequence[str] = ()) -> None:
        self.model = model
        self.wanted = tuple(wanted)
        self._answered = self.wanted or tuple(spec.name for spec in model.outputs if not spec.optional)
        self._inputs = {spec.name: (numpy_dtype(spec.dtype), tuple(spec.dims)) for spec in model.inputs}
        self._states = {spec.input_name: (numpy_dtype(spec.dtype), tuple(spec.dims)) for spec in model.states}
        self._states |= {
            spec.name: (numpy_dtype(spec.dtype), tuple(spec.dims)) for spec in model.constants if spec.per_session
        }

    def asking(self, outputs: Sequence[str]) -> "Codec":
        """The same, for calls that ask for outputs by name; none: for those that are answered by default.

        Raises:
            InputError: INVALID_REQUEST: the model has no such output.
        """
        if isinstance(outputs, str):
            raise TypeError(f"outputs are a list of names, such as [{outputs!r}]")
        known = [spec.name for spec in self.model.outputs]
        for name in outputs:
            if name not in known:
                raise invalid_input(
                    f"model {self.model.name} has no output {name!r}; it has {', '.join(known)}",
                    "INVALID_REQUEST",
                    field="outputs",
                )
        return Codec(self.model, outputs) if outputs else self

    def step(self, x: Inputs) -> list[tensor_pb2.Tensor]:
        """Tensors of one step, each of the model's [dims].

        Raises:
            InputError: INPUT_NAME, INPUT_DTYPE or INPUT_SHAPE.
        """
        return [to_tensor(self._checked(name, values, ()), name) for name, values in self._by_name(x).items()]

    def sequence(self, xs: Inputs, axes: tuple[str, ...] = ("T",)) -> tuple[list[tensor_pb2.Tensor], int]:
        """Tensors of shape [T, dims] (or with other named axes in front), and the length of their first axis.

        Raises:
            InputError: INPUT_NAME, INPUT_DTYPE or INPUT_SHAPE.
        """
        arrays = {name: self._checked(name, values, axes) for name, values in self._by_name(xs).items()}
        leading = {array.shape[: len(axes)] for array in arrays.values()}
        if len(leading) > 1:
            shapes = {name: list(array.shape) for name, array in arrays.items()}
            raise invalid_input(f"the inputs have different lengths: {shapes}", "INPUT_SHAPE", shape=shapes)
        return [to_tensor(array, name) for name, array in arrays.items()], leading.pop()[0]

    def states(self, states: Mapping[str, ArrayLike] | None) -> list[tensor_pb2.Tensor]:
        """Tensors of initial states and of a session's own constants, each of its [dims], by its name in the graph.

        Raises:
            InputError: INPUT_NAME, INPUT_DTYPE or INPUT_SHAPE.
        """
        return [
            to_tensor(_fit(name, values, *_spec(self._states, name, "state"), ()), name)
            for name, values in (states or {}).items()
        ]

    def outputs(self, tensors: Iterable[tensor_pb2.Tensor], *, named: bool) -> Outputs:
        """The arrays of an answer: by name, or the only one."""
        if named:
            return {tensor.name: to_array(tensor) for tensor in tensors}
        (tensor,) = tensors
        return to_array(tensor)

    def zeros(self, lead: Sequence[int]) -> list[tensor_pb2.Tensor]:
        """An answer of zeros, each of shape [*lead, dims]."""
        specs = {spec.name: spec for spec in self.model.outputs}
        return [
            to_tensor(np.zeros((*lead, *specs[name].dims), numpy_dtype(specs[name].dtype)), name)
            for name in self._answered
        ]

    def named(self, x: object) -> bool:
        """Whether inputs like `x` are given by name, so that outputs are too.

        Raises:
            InputError: INPUT_NAME: a plain array was given where there are several inputs or outputs.
        """
        if isinstance(x, Mapping):
            return True
        if len(self.model.inputs) != 1 or len(self._answered) != 1:
            inputs = [spec.name for spec in self.model.inputs]
            raise invalid_input(
                f"model {self.model.name} takes {inputs} and answers {list(self._answered)}: "
                "give the inputs as a dict by name, and the outputs come as one",
                "INPUT_NAME",
                expected=inputs,
            )
        return False

    def _by_name(self, x: Inputs) -> Mapping[str, ArrayLike]:
        if not self.named(x):
            return {self.model.inputs[0].name: x}  # type: ignore[dict-item]  # not a mapping: `named` said so
        assert isinstance(x, Mapping)  # noqa: S101 - for the type checker
        missing = [name for name in self._inputs if name not in x]
        if missing:
            raise invalid_input(
                f"input {missing[0]!r} is missing; model {self.model.name} takes {list(self._inputs)}",
                "INPUT_NAME",
                input=missing[0],
                expected=list(self._inputs),
            )
        return x

    def _checked(self, name: str, values: ArrayLike, leading: tuple[str, ...]) -> NDArray[Any]:
        return _fit(name, values, *_spec(self._inputs, name, "input"), leading)


def _spec(
    specs: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], name: str, kind: str
) -> tuple[np.dtype[Any], tuple[int, ...]]:
    try:
        return specs[name]
    except KeyError:
        raise invalid_input(
            f"the model has no {kind} {name!r}; it takes {list(specs)}", "INPUT_NAME", input=name, expected=list(specs)
        ) from None


def _fit(
    name: str, values: ArrayLike, dtype: np.dtype[Any], dims: tuple[int, ...], leading: tuple[str, ...]
) -> NDArray[Any]:
    """The values as an array of `dtype` and shape [*leading, *dims], where nothing but float precision may be lost."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise invalid_input(f"input {name!r} is not an array: {error}", "INPUT_SHAPE", input=name) from None
    if array.ndim != len(leading) + len(dims) or array.shape[len(leading) :] != dims:
        expected = f"[{', '.join(map(str, (*leading, *dims)))}]"
        hint = ""
        if not leading and array.shape[1:] == dims:
            hint = "; use `steps` or `stream` for several steps"
        elif leading and array.shape == dims:
            hint = "; use `step` for one step"
        raise invalid_input(
            f"input {name!r} has shape {list(array.shape)}, expected {expected}{hint}",
            "INPUT_SHAPE",
            input=name,
            shape=list(array.shape),
            expected=expected,
        )
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):  # the server says what is not finite
        if np.can_cast(array.dtype, dtype, "same_kind"):
            converted = array.astype(dtype)
            if dtype.kind == "f" or np.array_equal(converted, array):
                return converted
        elif array.dtype.kind in "iu" and dtype.kind in "iu":
            converted = array.astype(dtype)
            if np.array_equal(converted, array):
                return converted
    raise invalid_input(
        f"input {name!r} has dtype {array.dtype}, whose values do not all fit into {dtype}",
        "INPUT_DTYPE",
        input=name,
        dtype=array.dtype,
        expected=dtype,
    )
