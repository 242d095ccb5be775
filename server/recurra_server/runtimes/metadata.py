"""Reads what a model file says about itself (docs/model-format.md)."""

import json
from collections.abc import Mapping

from pydantic import ConfigDict, TypeAdapter, ValidationError

from recurra_server.engine.signature import Feedback, Signature, SignatureError, StateSpec, TensorSpec

SIGNATURE_KEY = "recurra.signature"
TRAINING_KEY = "recurra.training"
_FORMAT = 1

# A misspelt field would otherwise be ignored in silence. Set here, so that the engine's
# own types need not know how they are read.
for _type in (Signature, TensorSpec, StateSpec, Feedback):
    _type.__pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[union-attr]

_SIGNATURE = TypeAdapter(Signature)
_METRICS = TypeAdapter(dict[str, float])


def read_signature(metadata: Mapping[str, str]) -> Signature:
    """Read the signature from a model file's metadata.

    Raises:
        SignatureError: It is missing or cannot be used; the message names the field.
    """
    text = metadata.get(SIGNATURE_KEY)
    if text is None:
        raise SignatureError(f"the file has no {SIGNATURE_KEY} in its metadata: export it with `recurra export`")
    fields = _object(text, SIGNATURE_KEY)
    version = fields.pop("format", None)
    if version != _FORMAT:
        raise SignatureError(f"signature.format is {json.dumps(version)}; this server reads format {_FORMAT}")
    try:
        return _SIGNATURE.validate_json(json.dumps(fields), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise SignatureError(f"signature{where}: {first['msg'].removeprefix('Value error, ')}") from None


def read_metrics(metadata: Mapping[str, str]) -> dict[str, float]:
    """Read the figures from training, for people; empty where there are none or they cannot be read."""
    try:
        training = _object(metadata.get(TRAINING_KEY, "{}"), TRAINING_KEY)
        return _METRICS.validate_python(training.get("metrics", {}))
    except (SignatureError, ValidationError):
        return {}


def _object(text: str, where: str) -> dict[str, object]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise SignatureError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(data, dict):
        raise SignatureError(f"{where} must be a JSON object")
    return data
