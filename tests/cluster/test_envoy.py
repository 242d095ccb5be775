"""What Envoy does with calls: a session's meet its owner, over TLS and from browsers too."""

import asyncio
import contextlib
import http.client
import struct
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from recurra.openinference import open_inference_pb2
from recurra.v1 import inference_pb2, models_pb2, sessions_pb2
from recurra_client import Client, UnavailableError
from recurra_server.rpc.access import OPEN, role_for
from recurra_server.security.identity import Role

from tests.cluster.cluster import Cluster, cluster
from tests.support import models
from tests.support.attacks import Attack

SESSIONS = 24
pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def them(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Servers that write nothing by themselves, so that what is not durable stays so."""
    folder = tmp_path_factory.mktemp("c")
    models.publish(folder / "models", "counter", models.counter(feedback={"input": "x", "output": "y"}))
    async with cluster(folder / "models", folder, "--checkpoint-interval", "60") as made:
        yield made


async def taken_over(them: Cluster) -> float:
    """How many sessions were taken over, by all servers."""
    scrapes = await asyncio.gather(*(asyncio.to_thread(server.metrics) for server in them.servers))
    return sum(scrape.get("recurra_sessions_taken_over_total") or 0 for scrape in scrapes)


@pytest.mark.parametrize("durability", ["ephemeral", "async"])
async def test_all_calls_about_a_session_meet_its_owner(them: Cluster, durability: str) -> None:
    before = await taken_over(them)
    async with Client(them.envoy.target) as client:
        sessions = [await client.session("counter", durability=durability).open() for _ in range(SESSIONS)]  # type: ignore[arg-type]
        there = [
            (await asyncio.to_thread(server.metrics)).get("recurra_sessions", model="counter", version="1")
            for server in them.servers
        ]
        assert sum(there) == SESSIONS  # type: ignore[arg-type]
        assert sum(count > 0 for count in there) > 1, "they are not spread"  # type: ignore[operator]
        for session in sessions:
            assert (await session.step([2])).tolist() == [2]
            assert (await session.info()).steps == 1
            assert (await client.sessions.get(session.id)).steps == 1
            async with await session.fork() as fork, client.resume(session.id) as resumed:
                assert (await fork.step([3])).tolist() == [5]
                assert (await resumed.step([4])).tolist() == [6]
            imported = await client.sessions.import_(await client.sessions.export(session.id))
            assert (await client.sessions.close(imported.session_id)).steps == 2
            await client.sessions.reset(session.id)
            await session.close()
    assert await taken_over(them) == before


@pytest.mark.parametrize("call", ["fork", "export", "info", "generate", "reset"])
async def test_steps_that_are_not_durable_are_there_for_calls_that_are_sent_elsewhere(them: Cluster, call: str) -> None:
    async with Client(them.envoy.target) as client, client.session("counter", durability="async") as session:
        for k in range(1, 6):
            assert (await session.step([1])).tolist() == [k]
        owner = await find(them, session.id)
        await them.crash(owner)
        assert (await session.step([1])).tolist() == [6], "another server has it now"
        assert await find(them, session.id) != owner
        await them.restart(owner)
        await them.envoy.sees(3)  # and other calls go to the first one again
        assert session.last.durable_step == 0
        match call:
            case "fork":
                async with await session.fork() as fork:
                    assert (await fork.step([10])).tolist() == [16]
            case "export":
                imported = await client.sessions.import_(await session.export())
                assert imported.steps == 6
            case "info":
                assert (await session.info()).steps == 6
            case "reset":
                await session.reset()
                assert (await session.step([3])).tolist() == [3]
                return
            case "generate":
                assert [one.output.tolist() async for one in client.generate(session, [[10]], max_steps=1)] == [[16]]
                return
        assert (await session.step([1])).tolist() == [7]


async def find(them: Cluster, session_id: str) -> int:
    """The place of the server that has a session, asked without Envoy."""
    for place, server in enumerate(them.servers):
        with contextlib.suppress(UnavailableError):  # it was killed
            async with Client(server.target, reconnect=0) as client:
                if session_id in [session.session_id async for session in client.sessions.list()]:
                    return place
    raise AssertionError("no server has it")


async def test_the_edge_speaks_tls(them: Cluster, attack: Attack) -> None:
    credentials = grpc.ssl_channel_credentials(await asyncio.to_thread((them.folder / "tls.crt").read_bytes))
    async with Client(them.envoy.edge, credentials=credentials) as client, client.session("counter") as session:
        assert (await session.step([5])).tolist() == [5]
    async with Client(them.envoy.edge, reconnect=0) as client:
        with pytest.raises(UnavailableError):
            await client.models()
    attack("Envoy's edge", "no encryption", "the connection is closed")


async def test_who_watches_envoy_cannot_change_it(them: Cluster, attack: Attack) -> None:
    connection = http.client.HTTPConnection(them.envoy.watchers, timeout=10)
    answers = {}
    for method, path in (
        ("GET", "/ready"),
        ("GET", "/config_dump"),
        ("GET", "/ready/../certs"),
        ("POST", "/quitquitquit"),
    ):
        await asyncio.to_thread(connection.request, method, path)
        answer = await asyncio.to_thread(connection.getresponse)
        await asyncio.to_thread(answer.read)
        answers[path] = answer.status
    connection.close()
    assert answers == {"/ready": 200, "/config_dump": 404, "/ready/../certs": 404, "/quitquitquit": 404}
    attack("Envoy's edge", "Envoy's admin interface, at the port for those who watch", "404")


async def test_the_edge_lets_through_what_predict_may_call_and_health(them: Cluster, attack: Attack) -> None:
    """So the world cannot change models, drain servers or move sessions, whatever the servers let callers do."""
    files = (models_pb2, sessions_pb2, inference_pb2, open_inference_pb2, health_pb2, reflection_pb2)
    methods = {
        f"/{service.full_name}/{method.name}"
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    methods |= {
        "/recurra.v1.InferenceService/StepX",
        "/recurra.v1.InferenceService/Step/",
        "/recurraxv1.InferenceService/Step",
    }
    credentials = grpc.ssl_channel_credentials(await asyncio.to_thread((them.folder / "tls.crt").read_bytes))
    with grpc.secure_channel(them.envoy.edge, credentials) as channel:
        passed = await asyncio.to_thread(lambda: {method for method in methods if passes(channel, method)})
    assert passed == {method for method in methods if method in OPEN or role_for(method) == Role.PREDICT}
    assert "/recurra.v1.InferenceService/Step" in passed
    assert "/recurra.v1.SessionsService/DrainSessions" not in passed
    attack(
        "Envoy's edge",
        "every call that needs the role operate, and names that are nearly a call's",
        "PERMISSION_DENIED, by Envoy",
    )


def passes(channel: grpc.Channel, method: str) -> bool:
    """Whether a call with an empty message gets to a server, whatever that answers."""
    stub: Any = channel.unary_stream(method)
    call = stub(b"", timeout=30)
    try:
        next(call, None)
    except grpc.RpcError as error:
        refused = grpc.StatusCode.PERMISSION_DENIED, "not from outside: docs/deployment.md says how operators call this"
        return (error.code(), error.details()) != refused
    call.cancel()
    return True


async def test_whoever_comes_from_inside_may_call_all(them: Cluster) -> None:
    async with Client(them.envoy.target) as client:
        assert (await client.load_model("counter")).name == "counter"


async def test_browsers_may_call(them: Cluster) -> None:
    """gRPC-Web over HTTP/1.1, from a page that may."""
    body = models_pb2.ListModelsRequest().SerializeToString()
    connection = http.client.HTTPConnection(them.envoy.target, timeout=10)
    headers = {"Content-Type": "application/grpc-web+proto", "X-Grpc-Web": "1", "Origin": "http://localhost:5173"}
    asked = {"Origin": headers["Origin"], "Access-Control-Request-Method": "POST"}
    await asyncio.to_thread(connection.request, "OPTIONS", "/recurra.v1.ModelsService/ListModels", headers=asked)
    allowed = await asyncio.to_thread(connection.getresponse)
    await asyncio.to_thread(allowed.read)
    assert {"authorization", "recurra-session"} <= set(
        (allowed.getheader("access-control-allow-headers") or "").split(",")
    )
    frame = struct.pack(">BI", 0, len(body)) + body
    await asyncio.to_thread(connection.request, "POST", "/recurra.v1.ModelsService/ListModels", frame, headers)
    answer = await asyncio.to_thread(connection.getresponse)
    assert answer.getheader("access-control-allow-origin") == headers["Origin"]
    content = await asyncio.to_thread(answer.read)
    connection.close()
    _, length = struct.unpack_from(">BI", content)
    listed = models_pb2.ListModelsResponse.FromString(content[5 : 5 + length])
    assert [model.name for model in listed.models] == ["counter"]
    assert b"grpc-status:0" in content[5 + length :]
