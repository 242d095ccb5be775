"""Tensors of the protocol, checked and turned into what the engine takes, and answers made of what it gives.

Everything is checked here, before memory is spent on it: names, types, shapes, lengths.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from recurra.openinference import open_inference_pb2 as pb

from recurra_server.engine.errors import (
    ChunkLengthError,
    InputDtypeError,
    InputNameError,
    InputShapeError,
    InvalidRequestError,
    shown,
)
from recurra_server.engine.outputs import Choice
from recurra_server.engine.served_model import ServedModel
from recurra_server.engine.signature import TensorSpec
from recurra_server.engine.steps import Buffer
from recurra_server.rpc.openinference.datatypes import CONTENTS, NAMES
from recurra_server.rpc.results import LARGEST_TEMPLATE

_MAX_AXES: Final = 8
# The axes before a tensor's dims: () for a step, (T,) or (1, T) for a chunk.
Lead = tuple[int, ...]
_Tensor = pb.ModelInferRequest.InferInputTensor


class Codec:
    """Reads the tensors of requests for one version of a model, and writes its answers.

    Attributes:
        model: The version.
    """

    def __init__(self, model: ServedModel, max_steps: int) -> None:
        self.model = model
        self._max_steps = max_steps
        self._inputs = [(spec, NAMES[spec.dtype]) for spec in model.signature.inputs]
        self._default = model.signature.default_outputs
        self._templates: dict[Lead, _Template] = {}
        self._expect(())

    # --- requests ------------------------------------------------------------------------

    def read(self, request: pb.ModelInferRequest) -> tuple[tuple[Buffer, ...], int, Lead]:
        """Read the inputs.

        Returns:
            The bytes of each input in the signature's order, the number of steps, and the axes before the dims.

        Raises:
            InputNameError, InputDtypeError, InputShapeError, ChunkLengthError, InvalidRequestError: They are
                not what the model takes.
        """
        tensors, raw = request.inputs, request.raw_input_contents
        if len(raw) == 1 == len(tensors) and tensors[0] == self._single:
            step = raw[0]
            if len(step) == self._single_bytes:
                return (step,), 1, self._single_lead  # nearly every message: a step that is described as the last one
        data, count, lead = self._check(tensors, raw)
        if count == 1 and lead != self._single_lead:
            self._expect(lead)
        return data, count, lead

    def _expect(self, lead: Lead) -> None:
        """Know a single step of the first input by its description as a whole, which is quicker to compare."""
        spec, datatype = self._inputs[0]
        self._single = _Tensor(name=spec.name, datatype=datatype, shape=(*lead, *spec.dims))
        self._single_lead = lead
        self._single_bytes = spec.step_bytes if len(self._inputs) == 1 else -1

    def _check(self, tensors: Sequence[_Tensor], raw: Sequence[bytes]) -> tuple[tuple[Buffer, ...], int, Lead]:
        if len(tensors) != len(self._inputs):
            expected = ", ".join(spec.name for spec, _ in self._inputs)
            raise InputNameError(f"there are {len(tensors)} inputs; the model takes {expected}", expected=expected)
        if raw and len(raw) != len(tensors):
            raise InvalidRequestError(
                f"there are {len(raw)} raw_input_contents for {len(tensors)} inputs; send one for each, or none",
                field="raw_input_contents",
            )
        if len(self._inputs) == 1:
            spec, datatype = self._inputs[0]
            data, count, lead = self._read(tensors[0], spec, datatype, raw[0] if raw else None)
            return (data,), count, lead
        return self._read_several(tensors, raw)

    def choose(self, wanted: Sequence[pb.ModelInferRequest.InferRequestedOutputTensor]) -> Choice | None:
        """The outputs that a request wants; None for the default ones.

        Raises:
            InvalidRequestError: There is no such output, or it is wanted in a form that there is not.
        """
        if not wanted:
            return None
        if len(wanted) == len(self._default) == 1 and wanted[0].name == self._default[0].name:
            choice = None  # which many clients name always
        else:
            choice = self.model.choose(output.name for output in wanted)
        for output in wanted:
            if output.parameters:
                _refuse_forms(output.parameters, f"output {output.name!r}")
        return choice

    def _read_several(self, tensors: Sequence[_Tensor], raw: Sequence[bytes]) -> tuple[tuple[Buffer, ...], int, Lead]:
        places = {tensor.name: index for index, tensor in enumerate(tensors)}
        found: list[Buffer] = []
        leads: dict[str, Lead] = {}
        for spec, datatype in self._inputs:
            index = places.get(spec.name)
            if index is None:
                expected = ", ".join(spec.name for spec, _ in self._inputs)
                raise InputNameError(f"input {spec.name!r} is missing", input=spec.name, expected=expected)
            data, count, leads[spec.name] = self._read(tensors[index], spec, datatype, raw[index] if raw else None)
            found.append(data)
        if len(set(leads.values())) > 1:
            listed = ", ".join(f"{name}: {list(lead)}" for name, lead in leads.items())
            raise InputShapeError(f"all inputs must have the same axes before their dims, not {listed}", shape=listed)
        return tuple(found), count, next(iter(leads.values()))

    def _read(self, tensor: _Tensor, spec: TensorSpec, datatype: str, raw: bytes | None) -> tuple[Buffer, int, Lead]:
        """Read an input: its bytes, the number of steps, and the axes before its dims."""
        if tensor.name != spec.name:
            raise InputNameError(
                f"the model has no input {shown(tensor.name)}; it has {spec.name}",
                input=tensor.name[:64],
                expected=spec.name,
            )
        if tensor.datatype != datatype:
            raise InputDtypeError(
                f"{spec.name!r} is of type {shown(tensor.datatype)}; the model takes {datatype}: "
                "convert it before sending",
                input=spec.name,
                dtype=tensor.datatype[:64],
                expected=datatype,
            )
        if tensor.parameters:
            _refuse_forms(tensor.parameters, f"input {spec.name!r}")
        count, lead = self._count(tensor, spec)
        if raw is None:
            return _typed(tensor, spec, datatype, count), count, lead
        if tensor.HasField("contents"):
            raise InvalidRequestError(
                f"input {spec.name!r} has contents, and raw_input_contents besides; send one of them", field="contents"
            )
        if len(raw) != count * spec.step_bytes:
            raise _shape_error(tensor, spec, f"{count * spec.step_bytes} bytes for it, not {len(raw)}")
        return raw, count, lead

    def _count(self, tensor: _Tensor, spec: TensorSpec) -> tuple[int, Lead]:
        """The number of steps by the shape, and the axes before the dims."""
        shape, dims = tuple(tensor.shape[: _MAX_AXES + 2]), spec.dims
        lead = shape[: len(shape) - len(dims)]
        count = lead[-1] if lead else 1
        if len(lead) > 2 or shape != (*lead, *dims) or (len(lead) == 2 and lead[0] != 1):
            chunk = ", ".join(["T", *map(str, dims)])
            raise _shape_error(tensor, spec, f"{list(dims)} for a step, [{chunk}] or [1, {chunk}] for T steps")
        if not 1 <= count <= self._max_steps:
            raise ChunkLengthError(
                f"input {spec.name!r} has {count} steps; a request has 1 to {self._max_steps}",
                steps=count,
                limit=self._max_steps,
            )
        return count, lead

    # --- answers -------------------------------------------------------------------------

    def write(
        self, request_id: str, outputs: Sequence[bytes], lead: Lead, choice: Choice | None
    ) -> pb.ModelInferResponse:
        """The answer to a call."""
        response = pb.ModelInferResponse(model_name=self.model.name, model_version=self.model.version, id=request_id)
        for spec in self._default if choice is None else choice.specs:
            response.outputs.add(name=spec.name, datatype=NAMES[spec.dtype], shape=(*lead, *spec.dims))
        response.raw_output_contents.extend(outputs)
        return response

    def write_streamed(
        self, request_id: str, outputs: Sequence[bytes], lead: Lead, choice: Choice | None
    ) -> pb.ModelStreamInferResponse:
        """The answer on a stream. It may be overwritten by the next one, so it must be serialised at once.

        All but the id and the outputs' elements stays the same for all steps of a model, and is prepared once.
        """
        template = self._templates.get(lead) if choice is None else None
        if template is None or template.room < 0:
            template = _Template(self.write("", outputs, lead, choice))
            if choice is None and lead in ((), (1,), (1, 1)):  # single steps: many, and of few kinds
                self._templates[lead] = template
        template.response.id = request_id
        for place, output in enumerate(outputs):
            template.contents[place] = output
            template.room -= len(output)
        template.room -= len(request_id)
        return template.whole


class _Template:
    """A prepared answer on a stream, and the parts of it that are filled in: it costs to look them up.

    Attributes:
        room: Bytes that it may still be filled with; below 0, it is to be made anew.
    """

    def __init__(self, response: pb.ModelInferResponse) -> None:
        response.parameters["triton_final_response"].bool_param = True
        self.whole = pb.ModelStreamInferResponse(infer_response=response)
        self.response = self.whole.infer_response
        self.contents = self.response.raw_output_contents
        self.room = LARGEST_TEMPLATE


def _typed(tensor: _Tensor, spec: TensorSpec, datatype: str, count: int) -> bytes:
    """The bytes of an input whose elements came in the field of their type."""
    place = CONTENTS.get(datatype)
    if place is None:
        raise InvalidRequestError(
            f"there is no field for the elements of {datatype} input {spec.name!r}; send them in raw_input_contents",
            field="raw_input_contents",
        )
    values = getattr(tensor.contents, place)
    expected = count * spec.step_bytes // spec.np_dtype.itemsize
    if len(values) != expected:
        raise _shape_error(tensor, spec, f"{expected} elements in {place} for it, not {len(values)}")
    if spec.np_dtype.itemsize < 4 and spec.np_dtype.kind in "iu":  # the field is wider than the type
        wide, bounds = np.fromiter(values, np.int64, expected), np.iinfo(spec.np_dtype)
        if wide.min() < bounds.min or wide.max() > bounds.max:
            raise InvalidRequestError(
                f"input {spec.name!r} has elements beyond {datatype}, {bounds.min} to {bounds.max}", field=place
            )
        return wide.astype(spec.np_dtype).tobytes()
    return np.fromiter(values, spec.np_dtype, expected).tobytes()


def _refuse_forms(parameters: object, whose: str) -> None:
    """Refuse the forms of tensors that other servers have and this one has not."""
    for name in ("shared_memory_region", "classification"):
        if name in parameters:  # type: ignore[operator]
            raise InvalidRequestError(f"{whose}: there is no {name} here; leave the parameter out", field=name)


def _shape_error(tensor: _Tensor, spec: TensorSpec, expected: str) -> InputShapeError:
    shape = str(list(tensor.shape[:_MAX_AXES]))
    return InputShapeError(
        f"{spec.name!r} has shape {shape}; expected {expected}", input=spec.name, shape=shape, expected=expected
    )
