"""Traces of real calls, as a collector gets them; and logs that name them."""

import json
import os
import re
import secrets
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2
from recurra_server.stores.embedded import EmbeddedValkey

from tests.support import models
from tests.support.attacks import Attack
from tests.support.collector import Collector, running_collector
from tests.support.server import ServerProcess, running_server
from tests.support.wire import Stream, Stubs, tensor

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    models.publish(root, "counter", models.counter())
    return root


@contextmanager
def traced(repository: Path, *options: str) -> Iterator[tuple[Collector, ServerProcess]]:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        collector = stack.enter_context(running_collector())
        server = stack.enter_context(
            running_server(repository, "--traces", collector.url, "--log-format", "json", *options)
        )
        yield collector, server


class Call:
    """A call that is part of a trace."""

    def __init__(self, *, sampled: bool = True) -> None:
        self.trace_id, self.span_id = secrets.token_hex(16), secrets.token_hex(8)
        self.metadata = (("traceparent", f"00-{self.trace_id}-{self.span_id}-0{int(sampled)}"),)


def open_session(stubs: Stubs, **fields: object) -> str:
    request = sessions_pb2.OpenSessionRequest(model="counter", **fields)  # type: ignore[arg-type]
    return stubs.sessions.OpenSession(request).session.session_id


def step(stubs: Stubs, session: str, call: Call, value: float = 1.0) -> None:
    request = inference_pb2.StepRequest(session_id=session, inputs=[tensor([value])])
    stubs.inference.Step(request, metadata=call.metadata)


def attribute(span: Span, key: str) -> object:
    (value,) = (pair.value for pair in span.attributes if pair.key == key)
    return getattr(value, value.WhichOneof("value") or "")


def test_a_step_is_a_child_of_its_caller_with_its_time_in_line_and_in_the_model(repository: Path) -> None:
    with traced(repository) as (collector, server):
        stubs, call, unsampled = Stubs(server.target), Call(), Call(sampled=False)
        session = open_session(stubs)
        step(stubs, session, unsampled)
        step(stubs, session, call)
        (whole,) = collector.wait_for("recurra.step", 1, call.trace_id)
        (queue,) = collector.wait_for("recurra.queue", 1, call.trace_id)
        (compute,) = collector.wait_for("recurra.compute", 1, call.trace_id)
        (batch,) = collector.wait_for("recurra.batch", 1, call.trace_id)
        collector.wait_for("recurra.step", 0, unsampled.trace_id)

        assert whole.parent_span_id.hex() == call.span_id
        assert queue.parent_span_id == compute.parent_span_id == whole.span_id
        assert whole.start_time_unix_nano <= queue.start_time_unix_nano + 1000
        assert queue.end_time_unix_nano <= compute.start_time_unix_nano + 1000
        assert compute.end_time_unix_nano <= whole.end_time_unix_nano + 1000
        assert [link.span_id for link in batch.links] == [whole.span_id]
        assert [link.span_id for link in compute.links] == [batch.span_id]
        assert attribute(whole, "recurra.model") == "counter"
        assert attribute(whole, "recurra.step") == 2
        assert attribute(whole, "recurra.session") == f"{session[:8]}…"
        assert collector.resource["service.name"] == "recurra"

        openmetrics = {"Accept": "application/openmetrics-text; version=1.0.0"}
        scrape = urllib.request.Request(server.metrics_url, headers=openmetrics)  # noqa: S310
        with urllib.request.urlopen(scrape) as answer:  # noqa: S310
            exemplars = re.findall(r'recurra_step_seconds_bucket\{.*# \{.*trace_id="(\w+)"', answer.read().decode())
        assert exemplars == [call.trace_id]


def test_a_batch_links_all_its_steps_however_they_came(repository: Path) -> None:
    with traced(repository) as (collector, server):
        stubs, call = Stubs(server.target), Call()
        sessions = [open_session(stubs) for _ in range(3)]
        rows = inference_pb2.StepBatchRequest(session_ids=sessions, inputs=[tensor([[1], [2], [3]])])
        stubs.inference.StepBatch(rows, metadata=call.metadata)
        (block,) = collector.wait_for("recurra.step", 1, call.trace_id)
        assert attribute(block, "recurra.rows") == 3
        (batch,) = collector.wait_for("recurra.batch", 1, call.trace_id)
        assert attribute(batch, "recurra.batch_size") == 3

        # A stream whose steps are of several sessions: those that come together run together.
        other = Call()
        stream = Stream(stubs, metadata=other.metadata)
        for session in sessions:
            stream.send(session_id=session, inputs=[tensor([1])])
        stream.end()
        steps = collector.wait_for("recurra.step", 3, other.trace_id)
        links = [link.span_id for batch in collector.of("recurra.batch", other.trace_id) for link in batch.links]
        assert sorted(links) == sorted(span.span_id for span in steps)


def test_a_step_that_fails_says_why(repository: Path) -> None:
    with traced(repository) as (collector, server):
        stubs, call = Stubs(server.target), Call()
        session = open_session(stubs)
        step(stubs, session, Call(), 3e38)
        with pytest.raises(grpc.RpcError):
            step(stubs, session, call, 3e38)
        (failed,) = collector.wait_for("recurra.step", 1, call.trace_id)
        assert failed.status.code == Status.STATUS_CODE_ERROR
        assert attribute(failed, "error.type") == "STATE_NOT_FINITE"


def test_the_wait_for_the_store_is_part_of_a_sync_step(repository: Path, tmp_path: Path) -> None:
    valkey = EmbeddedValkey(tmp_path / "v")
    valkey.start()
    with traced(repository, "--store", valkey.url) as (collector, server):
        stubs, call, opening = Stubs(server.target), Call(), Call()
        request = sessions_pb2.OpenSessionRequest(model="counter", durability=sessions_pb2.DURABILITY_SYNC)
        session = stubs.sessions.OpenSession(request, metadata=opening.metadata).session.session_id
        (created,) = collector.wait_for("recurra.store.create", 1, opening.trace_id)
        assert created.parent_span_id.hex() == opening.span_id
        step(stubs, session, call)
        (whole,) = collector.wait_for("recurra.step", 1, call.trace_id)
        (store,) = collector.wait_for("recurra.store", 1, call.trace_id)
        (save,) = collector.wait_for("recurra.store.save", 1)
        assert store.parent_span_id == whole.span_id
        assert store.end_time_unix_nano == whole.end_time_unix_nano
        assert store.start_time_unix_nano <= save.start_time_unix_nano
        assert save.end_time_unix_nano <= store.end_time_unix_nano + 1_000_000
    valkey.stop()


def test_logs_name_traces_and_slow_steps_but_no_session_no_input_and_no_header(
    repository: Path, attack: Attack
) -> None:
    with traced(repository, "--slow-seconds", "1e-9") as (_, server):
        stubs, call = Stubs(server.target), Call()
        session = open_session(stubs)
        step(stubs, session, call, 123.456)
        for malformed in ("hush-hush", "hush=hush," * 200):
            headers = (*Call().metadata, ("tracestate", malformed))
            stubs.models.ListModels(models_pb2.ListModelsRequest(), metadata=headers)
        server.stop()
    logs = [json.loads(line) for line in server.output.splitlines() if line.startswith("{")]
    (slow,) = (line for line in logs if line["event"] == "slow_step")
    assert slow["trace_id"] == call.trace_id
    assert slow["queue_seconds"] + slow["compute_seconds"] <= slow["seconds"]
    assert slow["session"] == f"{session[:8]}…"
    assert session not in server.output
    assert "123.4" not in server.output
    attack("log", "finding session ids and inputs in it", "ids are shortened, inputs are not there")
    assert "hush" not in server.output
    assert "tracestate" not in server.output, "nobody fills it with what anybody may send"
    attack("log", "finding a malformed header of a traced call in it", "it is not there")


def test_a_slow_step_names_no_trace_where_nothing_is_traced(repository: Path) -> None:
    with running_server(repository, "--slow-seconds", "1e-9", "--log-format", "json") as server:
        stubs = Stubs(server.target)
        step(stubs, open_session(stubs), Call())
        server.stop()
    (slow,) = [json.loads(line) for line in server.output.splitlines() if '"slow_step"' in line]
    assert "trace_id" not in slow


def test_without_the_extra_it_serves_and_says_what_traces_need(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocker = repository / "blocked"
    (blocker / "opentelemetry").mkdir(parents=True, exist_ok=True)
    (blocker / "opentelemetry" / "__init__.py").write_text("raise ImportError('not here')")
    monkeypatch.setenv("PYTHONPATH", str(blocker), prepend=os.pathsep)
    with running_server(repository) as server:
        stubs = Stubs(server.target)
        step(stubs, open_session(stubs), Call())
        stubs.channel.close()
    with pytest.raises(RuntimeError, match=r"recurra: --traces needs OpenTelemetry: pip install '.\[otel\]'"):
        ServerProcess(repository, "--traces", "http://127.0.0.1:9")
