"""Durations that callers send."""

from typing import Any, Final

from recurra_server.engine.errors import InvalidRequestError

_NANOS: Final = 10**9  # in a second
_MOST: Final = 315_576_000_000  # seconds: 10,000 years, as google/protobuf/duration.proto has it


def read_seconds(request: Any, field: str) -> float | None:
    """A field's duration in seconds; None where it is unset.

    protobuf takes in whatever numbers are sent, also those that are no duration by its own rules.

    Raises:
        InvalidRequestError: It is none.
    """
    if not request.HasField(field):
        return None
    duration = getattr(request, field)
    seconds: int = duration.seconds
    nanos: int = duration.nanos
    if abs(nanos) >= _NANOS:
        why = f"nanos must be within +-{_NANOS - 1:,}, not {nanos:,}"
    elif seconds * nanos < 0:
        why = f"seconds and nanos must have the same sign, not {seconds:,} and {nanos:,}"
    elif abs(seconds) > _MOST:
        why = f"seconds must be within +-{_MOST:,}, not {seconds:,}"
    else:
        return seconds + nanos / _NANOS
    raise InvalidRequestError(f"{field} is no duration: its {why}", field=field)
