"""Reads what a model file and the model.yaml beside it say about it (docs/model-format.md)."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from recurra_server.engine.errors import one_line, shown
from recurra_server.engine.signature import (
    ConstantSpec,
    Feedback,
    Signature,
    SignatureError,
    StateSpec,
    TensorSpec,
)
from recurra_server.runtimes.guess import FILL_IN

SIGNATURE_KEY = "recurra.signature"
TRAINING_KEY = "recurra.training"
DESCRIPTION: Final = "model.yaml"
_FORMAT = 1
_MAX_DESCRIPTION = 1 << 20

# A misspelt field would otherwise be ignored in silence. Set here, so that the engine's
# own types need not know how they are read.
for _type in (Signature, TensorSpec, StateSpec, ConstantSpec, Feedback):
    _type.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]

_SIGNATURE = TypeAdapter(Signature)
_METRICS = TypeAdapter(dict[str, float])


def read_signature(metadata: Mapping[str, str], description: Mapping[str, Any] | None = None) -> Signature:
    """Read the signature from a model file's metadata and from what `read_description` has read.

    A field of the description takes the place of that field of the metadata.

    Raises:
        SignatureError: It is missing or cannot be used; the message names the field.
    """
    text = metadata.get(SIGNATURE_KEY)
    if text is None and description is None:
        raise SignatureError(
            f"nothing says what the model takes and remembers: the file has no {SIGNATURE_KEY} in its metadata, and "
            f"there is no {DESCRIPTION} beside it; `recurra inspect` writes one to start from"
        )
    fields: dict[str, Any] = {}
    for source, where in ((None if text is None else _object(text), SIGNATURE_KEY), (description, DESCRIPTION)):
        if source is not None:
            if source.get("format") != _FORMAT:
                stated = json.dumps(source.get("format"), default=str)
                raise SignatureError(f"format in {where} is {stated}; this server reads format {_FORMAT}")
            fields |= source
    del fields["format"]
    try:
        return _SIGNATURE.validate_json(json.dumps(fields, allow_nan=False), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        wrong = first["msg"].removeprefix("Value error, ")
        if first["input"] == FILL_IN:
            wrong = f"{FILL_IN} stands where the graph does not tell: write what it is"
        raise SignatureError(f"signature{where}: {wrong}") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise SignatureError(f"the signature has a value that JSON cannot hold: {error}") from None


def read_description(model: Path) -> dict[str, Any] | None:
    """Read the model.yaml beside a model file; None where there is none, or an empty one.

    Raises:
        SignatureError: It is no plain YAML mapping.
    """
    path = model.with_name(DESCRIPTION)
    if not path.exists():
        return None
    with path.open("rb") as file:
        data = file.read(_MAX_DESCRIPTION + 1)
    if len(data) > _MAX_DESCRIPTION:
        raise SignatureError(f"{DESCRIPTION} is larger than {_MAX_DESCRIPTION >> 10} KiB")
    if not data.strip():  # the shell makes it so, before `recurra inspect model.onnx > model.yaml` begins
        return None
    try:
        fields = yaml.load(data, _PlainLoader)  # noqa: S506 - a safe loader, and stricter
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
        raise SignatureError(f"{DESCRIPTION} cannot be read: {_wrong(error)}") from None
    if not isinstance(fields, dict):
        raise SignatureError(f"{DESCRIPTION} must be a mapping that begins with `format: {_FORMAT}`")
    return fields


def _wrong(error: Exception) -> str:
    """What is wrong with a file and where; without the lines around it, which are not for every caller to see."""
    if isinstance(error, yaml.MarkedYAMLError) and (place := error.problem_mark) is not None:
        return f"line {place.line + 1}, column {place.column + 1}: {str(error.problem)[:300]}"
    return one_line(error)


class _PlainLoader(yaml.SafeLoader):
    """YAML as JSON could say it: a few bytes of aliases can stand for gigabytes, and a repeated key for a mistake."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Refuse aliases."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name): write the value out")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse keys that are no text, or stand twice."""
        keys = [key.value for key, _ in node.value if key.tag == "tag:yaml.org,2002:str"]
        if len(keys) != len(node.value):
            raise yaml.MarkedYAMLError(problem="it has a key that is no text", problem_mark=node.start_mark)
        if twice := next((key for key, times in Counter(keys).items() if times > 1), None):
            raise yaml.MarkedYAMLError(problem=f"{shown(twice)} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def read_metrics(metadata: Mapping[str, str]) -> dict[str, float]:
    """Read the figures from training, for people; empty where there are none or they cannot be read."""
    try:
        training = _object(metadata.get(TRAINING_KEY, "{}"))
        return _METRICS.validate_python(training.get("metrics", {}))
    except (SignatureError, ValidationError):
        return {}


def _object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SignatureError(f"the metadata is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise SignatureError("the metadata must be a JSON object")
    return data
