"""The asyncio client and a real server."""

import asyncio
import datetime
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recurra_client import (
    Client,
    ClientClosedError,
    InputError,
    ModelNotFoundError,
    SessionExistsError,
    SessionExpiredError,
    SessionNotFoundError,
    SnapshotError,
)

from tests.client.conftest import total
from tests.support.server import ServerProcess, running_server


async def test_a_session_remembers_and_is_closed_at_the_end(client: Client) -> None:
    async with client.session("counter") as session:
        assert [await total(session, x) for x in (1, 2, 3)] == [1, 3, 6]
        assert session.last.step == 3
        assert not session.last.replayed
        assert session.last.batch_size == 1
        assert 0 <= session.last.compute < session.last.latency < 30
        assert (await session.info()).steps == 3
    with pytest.raises(SessionNotFoundError):
        await client.sessions.get(session.id)


async def test_steps_chunks_and_the_whole_agree(client: Client) -> None:
    xs = np.random.default_rng(0).standard_normal((24, 4))
    whole = await client.predict("lstm", xs)
    async with client.session("lstm") as session:
        one_by_one = [await session.step(x) for x in xs]
        assert one_by_one[0].shape == (2,)
        np.testing.assert_allclose(np.stack(one_by_one), whole, atol=1e-5)
        await session.reset()
        chunks = [await session.steps(xs[:7]), await session.steps(xs[7:8]), await session.steps(xs[8:])]
        np.testing.assert_allclose(np.concatenate(chunks), whole, atol=1e-5)
        await session.reset()
        streamed = [y async for y in session.stream(xs, window=5)]
        np.testing.assert_allclose(np.stack(streamed), whole, atol=1e-5)
    np.testing.assert_allclose(await client.predict("lstm", xs, last_only=True), whole[-1], atol=1e-5)


async def test_a_stream_of_a_live_source_comes_in_order(client: Client) -> None:
    async def source() -> AsyncIterator[list[float]]:
        for x in range(300):
            yield [x]

    async with client.session("counter") as session:
        outputs = [float(y[0]) async for y in session.stream(source())]
    assert outputs == np.cumsum(range(300)).tolist()


async def test_names_in_give_names_out(client: Client) -> None:
    async with client.session("counter") as session:
        assert (await session.step({"x": [4]}))["y"].tolist() == [4]
        assert (await session.steps({"x": [[1], [1]]}))["y"].tolist() == [[5], [6]]
        assert [y["y"].tolist() async for y in session.stream({"x": [[1], [1]]})] == [[7], [8]]
    assert (await client.predict("counter", {"x": [[1], [2]]}))["y"].tolist() == [[1], [3]]


async def test_many_sessions_at_once_keep_apart(client: Client) -> None:
    async def run(k: int) -> list[float]:
        async with client.session("counter") as session:
            return [await total(session, k) for _ in range(20)]

    results = await asyncio.gather(*(run(k) for k in range(32)))
    assert results == [[k * n for n in range(1, 21)] for k in range(32)]


async def test_a_step_that_fails_changes_nothing(client: Client) -> None:
    async with client.session("counter") as session:
        assert await total(session, 5) == 5
        with pytest.raises(InputError) as caught:
            await session.step([np.nan])
        assert caught.value.reason == "INPUT_NOT_FINITE"
        with pytest.raises(InputError):
            await session.steps([[1.0], [np.inf]])
        with pytest.raises(InputError) as caught:
            await session.step([1, 2])
        assert caught.value.reason == "INPUT_SHAPE"
        assert await total(session, 1) == 6
        assert session.last.step == 2


async def test_steps_called_together_are_applied_in_the_order_of_the_calls(client: Client) -> None:
    async with client.session("counter") as session:
        results = await asyncio.gather(*(session.step([x]) for x in (1.0, np.nan, 10.0, 100.0)), return_exceptions=True)
        assert isinstance(results[1], InputError)
        assert [float(y[0]) for y in results if isinstance(y, np.ndarray)] == [1, 11, 111]


async def test_a_stream_ends_at_a_bad_step_and_the_session_goes_on(client: Client) -> None:
    async with client.session("counter") as session:
        outputs = session.stream(np.array([[1], [1], [np.nan], [1]]))
        assert [float((await anext(outputs))[0]) for _ in range(2)] == [1, 2]
        with pytest.raises(InputError):
            await anext(outputs)
        assert await total(session, 1) == 3


async def test_forks_and_resets(client: Client) -> None:
    async with client.session("counter", session_id="tree") as session:
        await total(session, 3)
        async with await session.fork("branch") as fork:
            assert fork.id == "branch"
            assert await total(fork, 10) == 13
            assert await total(session, 1) == 4
            await session.reset()
            assert await total(session, 1) == 1
            assert session.last.step == 1
            assert await total(fork, 1) == 14
        with pytest.raises(SessionNotFoundError):
            await client.sessions.get("branch")


async def test_a_session_moves_to_another_server_and_back_in_time(client: Client, models_folder: Path) -> None:
    async with client.session("counter", session_id="traveller") as session:
        await total(session, 3)
        snapshot = await client.sessions.export("traveller")
        assert await total(session, 10) == 13
        with running_server(models_folder) as elsewhere:
            async with Client(elsewhere.target) as other:
                arrived = await other.sessions.import_(snapshot, "traveller", idle_timeout=50.0)
                assert (arrived.steps, arrived.idle_timeout.seconds) == (1, 50)
                async with other.resume("traveller") as moved:
                    assert await total(moved, 1) == 4
                    assert moved.last.step == 2
        assert (await client.sessions.rewind("traveller", snapshot)).steps == 1
        async with client.resume("traveller") as again:
            assert await total(again, 1) == 4
    for damaged in (b"", snapshot[:-1]):
        with pytest.raises(SnapshotError):
            await client.sessions.import_(damaged)


async def test_a_kept_session_is_gone_on_with(client: Client, server: ServerProcess) -> None:
    async with client.session("counter", keep=True) as session:
        await total(session, 2)
    async with Client(server.target) as other, other.resume(session.id, keep=False) as resumed:
        assert resumed.model.name == "counter"
        assert await total(resumed, 3) == 5
    with pytest.raises(SessionNotFoundError):
        await client.resume(session.id).open()


async def test_sessions_by_id(client: Client) -> None:
    assert await client.sessions.count("letters") == 0
    opened = [await client.session("letters", session_id=f"list-{k}").open() for k in range(5)]
    assert [s.session_id async for s in client.sessions.list("letters")] == [s.id for s in opened]
    assert [s.session_id async for s in client.sessions.list("letters", limit=2)] == ["list-0", "list-1"]
    assert await client.sessions.count("letters") == 5
    await opened[0].step(1)
    assert (await client.sessions.get("list-0")).steps == 1
    assert (await client.sessions.fork("list-0", "list-fork")).steps == 1
    assert (await client.sessions.reset("list-0")).steps == 0
    for session_id in ["list-fork", *(s.id for s in opened)]:
        await client.sessions.close(session_id)
    assert await client.sessions.count("letters") == 0
    with pytest.raises(SessionNotFoundError):
        await client.sessions.close("list-0")


async def test_an_own_id_can_be_open_once(client: Client) -> None:
    async with client.session("counter", session_id="mine"):
        with pytest.raises(SessionExistsError):
            await client.session("counter", session_id="mine").open()


async def test_an_expired_session_says_so(client: Client) -> None:
    async with client.session("counter", idle_timeout=datetime.timedelta(milliseconds=30)) as session:
        async with asyncio.timeout(10):
            while await client.sessions.count("counter"):  # asking does not count as use
                pass
        with pytest.raises(SessionExpiredError) as caught:
            await session.step([1])
        assert caught.value.metadata["session_id"] == session.id
        assert float(caught.value.metadata["idle_timeout_seconds"]) == pytest.approx(0.03)


async def test_initial_states_are_taken(client: Client) -> None:
    async with client.session("counter", initial_states={"s_in": [40]}) as session:
        assert await total(session, 2) == 42
    assert (await client.predict("counter", [[2]], initial_states={"s_in": [40]})).tolist() == [[42]]
    with pytest.raises(InputError, match="no state 'h'"):
        await client.session("counter", initial_states={"h": [1]}).open()


async def test_unknown_models_are_told(client: Client) -> None:
    for call in (client.session("nope").open(), client.model("nope"), client.predict("nope", [[1]])):
        with pytest.raises(ModelNotFoundError) as caught:
            await call
        assert caught.value.metadata["model"] == "nope"
    assert {model.name for model in await client.models()} >= {"counter", "lstm"}
    assert (await client.model("counter")).latest


async def test_rows_of_a_batch_fail_one_by_one(client: Client) -> None:
    async with client.session("counter") as a, client.session("counter") as b:
        result = await client.step_batch("counter", [a.id, "nobody", b.id], [[1], [2], [3]], steps=[1, 1, 1])
        assert result.outputs.tolist() == [[1], [0], [3]]
        assert list(result.steps) == [1, 0, 1]
        assert {row: type(error) for row, error in result.errors.items()} == {1: SessionNotFoundError}
        again = await client.step_batch("counter", [a.id, b.id], {"x": [[5], [5]]}, steps=[1, 2])
        assert again.outputs["y"].tolist() == [[1], [8]]
        assert again.replayed == {0}
        chunks = await client.step_batch("counter", [a.id], [[[1], [1]]], chunks=True)
        assert chunks.outputs.tolist() == [[[2], [3]]]
        with pytest.raises(ValueError, match="2 rows"):
            await client.step_batch("counter", [a.id], [[1], [2]])


async def test_where_all_rows_of_a_batch_fail_it_is_told_of_each(client: Client) -> None:
    result = await client.step_batch("counter", ["nobody", "neither"], [[1], [2]])
    assert result.outputs.tolist() == [[0], [0]]
    assert {row: type(error) for row, error in result.errors.items()} == dict.fromkeys((0, 1), SessionNotFoundError)
    chunks = await client.step_batch("counter", ["nobody"], {"x": np.ones((1, 3, 1))}, chunks=True)
    assert chunks.outputs["y"].tolist() == [[[0], [0], [0]]]


async def test_a_session_must_be_open(client: Client) -> None:
    session = client.session("counter")
    with pytest.raises(RuntimeError, match="not open"):
        await session.step([1])


async def test_a_client_that_is_closed_says_so(server: ServerProcess, client: Client) -> None:
    closed = Client(server.target)
    idle, stepped = await closed.session("letters").open(), await closed.session("letters").open()
    await stepped.step(1)
    await closed.close()
    calls: list[Awaitable[Any]] = [closed.models(), idle.step(1), stepped.step(1)]
    calls.append(anext(closed.generate(idle, [1], max_steps=1)))
    for call in calls:
        with pytest.raises(ClientClosedError, match="the client is closed"):
            await call
    for session in (idle, stepped):
        await client.sessions.close(session.id)


@pytest.mark.parametrize("reconnect", [0.0, 20.0])
async def test_calls_that_are_under_way_when_their_client_is_closed_say_so(
    server: ServerProcess, client: Client, reconnect: float
) -> None:
    closed = Client(server.target, reconnect=reconnect)
    stepped, generating = await closed.session("watched").open(), await closed.session("watched").open()
    calling, stepping, generates = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def call() -> None:
        while await closed.is_serving():
            calling.set()

    async def step() -> None:
        while True:
            await stepped.step([0])
            stepping.set()

    async def generate() -> None:
        async for _ in closed.generate(generating, [[0]], max_steps=4000):
            generates.set()

    tasks = []
    for work, begun in ((call, calling), (step, stepping), (generate, generates)):
        tasks.append(asyncio.create_task(work()))
        await begun.wait()
    await closed.close()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [ClientClosedError] * 3
    for session in (stepped, generating):
        await client.sessions.close(session.id)


def test_a_client_can_be_made_outside_of_the_event_loop(server: ServerProcess) -> None:
    client = Client(server.target)

    async def use() -> Any:
        async with client, client.session("counter") as session:
            return await session.step([2])

    assert asyncio.run(use()).tolist() == [2]


async def test_what_the_latest_version_takes_is_not_asked_for_with_each_message(client: Client) -> None:
    connection = client._connection
    codecs = {id(await connection.codec("counter")) for _ in range(10)}
    assert len(codecs) == 1
