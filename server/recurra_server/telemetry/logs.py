"""Structured logs: JSON lines on stderr, or a readable form where a person watches."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

_SHOWN = 8  # characters of a session's id


def shortened(session_id: str | None) -> str:
    """A session's id, as far as it may be shown: enough to tell it from others, too little to go on with it."""
    text = session_id or ""
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _shorten_session(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    if "session" in event:
        event["session"] = shortened(event["session"])
    return event


def _is_ours_to_tell(record: logging.LogRecord) -> bool:
    """Whether a record may be written: not those of libraries that show a caller's headers, a token perhaps.

    They are gRPC's of headers that are no text, and OpenTelemetry's of a malformed `traceparent` or `tracestate`.
    """
    if record.name.startswith("opentelemetry.trace"):
        return False
    error = record.exc_info[1] if record.exc_info else None
    return not (record.name.startswith("grpc") and isinstance(error, UnicodeDecodeError))


def configure_logs(level: str, *, json: bool) -> None:
    """Send the server's and its libraries' logs to stderr.

    Args:
        level: The least severe level that is written, such as "info".
        json: One JSON object a line; else columns for people.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        _shorten_session,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if json
        # Not as it comes: rich would show the values of variables, and with them what callers sent.
        else structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
    )
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_is_ours_to_tell)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *([structlog.processors.format_exc_info] if json else []),
                renderer,
            ],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
