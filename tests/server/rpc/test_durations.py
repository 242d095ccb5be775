"""What is no duration by protobuf's own rules is refused, wherever one is taken."""

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from recurra.v1.sessions_pb2 import (
    CloseSessionRequest,
    DrainSessionsRequest,
    ExportSessionRequest,
    ImportSessionRequest,
    OpenSessionRequest,
)

from tests.support.wire import Stream, Stubs, error_info

NONE = {
    "seconds and nanos must have the same sign, not 5 and -3": {"seconds": 5, "nanos": -3},
    "seconds and nanos must have the same sign, not -1 and 1": {"seconds": -1, "nanos": 1},
    r"nanos must be within \+-999,999,999, not 2,147,483,647": {"seconds": 90_000, "nanos": 2**31 - 1},
    r"nanos must be within \+-999,999,999, not -1,000,000,000": {"seconds": -5, "nanos": -(10**9)},
    r"seconds must be within \+-315,576,000,000, not 9,223,": {"seconds": 2**63 - 1},
}


@pytest.fixture
def snapshot(stubs: Stubs) -> Iterator[bytes]:
    session = stubs.sessions.OpenSession(OpenSessionRequest(model="counter")).session
    yield stubs.sessions.ExportSession(ExportSessionRequest(session_id=session.session_id)).snapshot
    stubs.sessions.CloseSession(CloseSessionRequest(session_id=session.session_id))


@pytest.mark.parametrize("why", NONE)
def test_what_is_no_duration_is_refused(stubs: Stubs, snapshot: bytes, why: str) -> None:
    none: Any = NONE[why]
    opening = OpenSessionRequest(model="counter", idle_timeout=none)
    imported = ImportSessionRequest(snapshot=snapshot, idle_timeout=none)
    for field, call in (
        ("idle_timeout", lambda: stubs.sessions.OpenSession(opening)),
        ("idle_timeout", lambda: stubs.sessions.ImportSession(imported)),
        ("grace", lambda: stubs.sessions.DrainSessions(DrainSessionsRequest(grace=none))),
    ):
        with pytest.raises(grpc.RpcError, match=f"{field} is no duration: its {why}") as refused:
            call()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert error_info(refused.value).metadata["field"] == field
    stream = Stream(stubs)
    error = stream.ask(open=opening).error
    assert (error.reason, error.metadata["field"]) == ("INVALID_REQUEST", "idle_timeout")
    stream.end()


def test_durations_are_taken_as_they_are(stubs: Stubs) -> None:
    request = OpenSessionRequest(model="counter", idle_timeout=Duration(seconds=7, nanos=999_999_999))
    session = stubs.sessions.OpenSession(request).session
    assert (session.idle_timeout.seconds, session.idle_timeout.nanos) == (7, 999_999_999)
    stubs.sessions.CloseSession(CloseSessionRequest(session_id=session.session_id))
