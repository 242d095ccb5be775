"""The signature: what a model takes, answers and remembers, as its file says it (docs/model-format.md)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from recurra_training.errors import SignatureError

SIGNATURE_KEY: Final = "recurra.signature"
TRAINING_KEY: Final = "recurra.training"
FORMAT: Final = 1

Dtype = Literal[
    "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool"
]
Kind = Literal["", "probability", "logit", "value"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or an output of a model.

    `dims` is the shape of one step of one sequence. The graph's own tensor also has a batch axis and, unless
    `time_axis` is None, a time axis, at the positions given. An `optional` output is only computed where a caller
    asks for it by name.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # a misspelt field must not be ignored in silence

    name: str
    dtype: Dtype
    dims: tuple[int, ...]
    batch_axis: int = 0
    time_axis: int | None = 1
    labels: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    kind: Kind = ""
    optional: bool = False

    @property
    def axes(self) -> dict[int, str]:
        """The free axes of the graph's tensor, by position, with their names."""
        named = {self.batch_axis: "batch"}
        return named if self.time_axis is None else named | {self.time_axis: "time"}

    def shape(self) -> list[int | str]:
        """The shape of the graph's tensor, its free axes by name."""
        return _with_axes(self.dims, self.axes)


@dataclass(frozen=True)
class StateSpec:
    """A tensor that the graph takes in and hands back; `dims` leave out its batch axis."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    input_name: str
    output_name: str
    dtype: Dtype
    dims: tuple[int, ...]
    batch_axis: int = 0
    initial: float = 0.0

    def shape(self) -> list[int | str]:
        """The shape of the graph's tensor, its batch axis by name."""
        return _with_axes(self.dims, {self.batch_axis: "batch"})


@dataclass(frozen=True)
class Feedback:
    """How an output becomes the next input; `sampled` draws a class index from logits."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    output: str
    input: str
    sampled: bool = False


@dataclass(frozen=True)
class Signature:
    """Everything that is needed to run a model step by step."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    states: tuple[StateSpec, ...] = ()
    description: str = ""
    step_seconds: float | None = None
    feedback: Feedback | None = None

    @property
    def has_time(self) -> bool:
        """Whether several steps can be run in one call."""
        return all(spec.time_axis is not None for spec in (*self.inputs, *self.outputs))

    def input_shapes(self) -> dict[str, list[int | str]]:
        """The shape of every input of the graph by name, in the graph's order, free axes by name."""
        return {spec.name: spec.shape() for spec in self.inputs} | {s.input_name: s.shape() for s in self.states}

    def output_shapes(self) -> dict[str, list[int | str]]:
        """The shape of every output of the graph by name, in the graph's order, free axes by name."""
        return {spec.name: spec.shape() for spec in self.outputs} | {s.output_name: s.shape() for s in self.states}

    def to_json(self) -> str:
        """The value of `recurra.signature`; what is empty is left out."""
        fields = {"format": FORMAT} | {key: value for key, value in asdict(self).items() if value not in (None, "")}
        fields["inputs"] = [_tensor_fields(spec) for spec in self.inputs]
        fields["outputs"] = [_tensor_fields(spec) for spec in self.outputs]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> "Signature":
        """Read the value of `recurra.signature`.

        Raises:
            SignatureError: It is not JSON, of another format, or has a field that is missing, unknown or of a wrong
                type; the message names the field.
        """
        try:
            fields = json.loads(text)
        except ValueError as error:
            raise SignatureError(f"{SIGNATURE_KEY} is not valid JSON: {error}") from None
        if not isinstance(fields, dict) or fields.pop("format", None) != FORMAT:
            raise SignatureError(f"{SIGNATURE_KEY} must be a JSON object with format {FORMAT}")
        try:
            return _ADAPTER.validate_json(json.dumps(fields), strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
            raise SignatureError(f"signature{where}: {first['msg']}") from None


_ADAPTER = TypeAdapter(Signature)


def read_signature(metadata: Mapping[str, str]) -> Signature:
    """Read the signature from a model file's metadata.

    Raises:
        SignatureError: It is missing or cannot be used.
    """
    if SIGNATURE_KEY not in metadata:
        raise SignatureError(f"the file has no {SIGNATURE_KEY} in its metadata; write it with `recurra export`")
    return Signature.from_json(metadata[SIGNATURE_KEY])


def _with_axes(dims: tuple[int, ...], axes: Mapping[int, str]) -> list[int | str]:
    shape: list[int | str] = list(dims)
    for position in sorted(axes):
        shape.insert(position, axes[position])
    return shape


def _tensor_fields(spec: TensorSpec) -> dict[str, Any]:
    empty: tuple[Any, ...] = ((), "")
    return {
        key: value
        for key, value in asdict(spec).items()
        if key in ("dims", "time_axis") or (value not in empty and value is not False)
    }
