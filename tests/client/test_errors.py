"""Failures as exceptions."""

import re
from pathlib import Path

import grpc
import pytest
import recurra_client
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from recurra.v1 import error_pb2
from recurra_client import (
    CapacityError,
    DeadlineExceededError,
    DrainingError,
    InputError,
    RecurraError,
    SessionExpiredError,
    SessionNotFoundError,
    UnavailableError,
)
from recurra_client.errors import from_message, from_rpc

DOCUMENT = Path(__file__).parents[2] / "docs" / "errors.md"
DOCUMENTED = re.findall(r"^\| `([A-Z_]+)` \| ([A-Z_]+) \|", DOCUMENT.read_text(), re.MULTILINE)


def failed_call(code: grpc.StatusCode, message: str, *details: Message) -> grpc.aio.AioRpcError:
    """As a server with rich status details fails a call."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    trailing = grpc.aio.Metadata(("grpc-status-details-bin", status.SerializeToString())) if details else None
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details=message)


def info(reason: str, domain: str = "recurra", **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain=domain, metadata=metadata)


@pytest.mark.parametrize(("reason", "code"), DOCUMENTED)
def test_every_documented_reason_has_a_class_of_its_kind(reason: str, code: str) -> None:
    status = grpc.StatusCode[code]
    error = from_rpc(failed_call(status, "what was wrong", info(reason, session_id="s")))
    assert type(error) is not RecurraError
    assert type(error).__name__ in recurra_client.__all__
    assert (error.reason, error.code, error.message) == (reason, status, "what was wrong")
    assert error.metadata == {"session_id": "s"}
    assert error.retry_after is None
    in_band = from_message(error_pb2.Error(code=status.value[0], reason=reason, message="what was wrong"))
    assert type(in_band) is type(error)
    assert in_band.code is status


def test_the_documents_table_was_found() -> None:
    assert ("SESSION_EXPIRED", "NOT_FOUND") in DOCUMENTED
    assert len(DOCUMENTED) >= 20


def test_when_to_try_again_is_told() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=1, nanos=500_000_000))
    error = from_rpc(failed_call(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", info("CAPACITY"), retry))
    assert isinstance(error, CapacityError)
    assert error.retry_after == 1.5
    message = error_pb2.Error(code=8, reason="CAPACITY", retry_after=duration_pb2.Duration(seconds=2))
    assert from_message(message).retry_after == 2


def test_a_failure_of_the_network_is_told_apart_from_a_refusal() -> None:
    unreachable = from_rpc(failed_call(grpc.StatusCode.UNAVAILABLE, "connection refused"))
    assert type(unreachable) is UnavailableError
    assert unreachable.reason == "UNAVAILABLE"
    draining = from_rpc(failed_call(grpc.StatusCode.UNAVAILABLE, "shuts down", info("DRAINING")))
    assert type(draining) is DrainingError
    for code in (grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED):
        broken = from_rpc(failed_call(code, "Received RST_STREAM with error code 8"))
        assert type(broken) is UnavailableError
    late = from_rpc(failed_call(grpc.StatusCode.DEADLINE_EXCEEDED, "Deadline Exceeded"))
    assert type(late) is DeadlineExceededError


def test_a_reason_of_another_system_is_not_taken_for_ours() -> None:
    error = from_rpc(failed_call(grpc.StatusCode.NOT_FOUND, "no route", info("SESSION_NOT_FOUND", "example.com")))
    assert type(error) is RecurraError
    assert error.reason == "NOT_FOUND"


def test_an_unknown_reason_is_still_told() -> None:
    error = from_message(error_pb2.Error(code=3, reason="SOMETHING_NEW", message="new"))
    assert type(error) is RecurraError
    assert str(error) == "new [SOMETHING_NEW]"


def test_the_usual_exceptions_catch_them_too() -> None:
    assert issubclass(SessionExpiredError, SessionNotFoundError)
    assert issubclass(InputError, ValueError)
    assert issubclass(DeadlineExceededError, TimeoutError)
    assert issubclass(UnavailableError, ConnectionError)
