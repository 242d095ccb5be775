"""The client asks for outputs by name."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from recurra_client import BlockingClient, InputError, connect

from tests.support.server import ServerProcess

X = {"x": np.array([1.0])}
XS = {"x": np.array([[1.0]])}


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    with connect(server.target) as connected:
        yield connected


def plain(answers: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: values.tolist() for name, values in answers.items()}


def test_a_session_asks_at_every_step(client: BlockingClient) -> None:
    with client.session("watched", outputs=["entry", "y"]) as session:
        assert plain(session.step(X)) == {"entry": [101], "y": [1]}
        assert plain(session.steps({"x": np.ones((2, 1))})) == {"entry": [[102], [103]], "y": [[2], [3]]}
        with session.fork() as fork:
            assert plain(fork.step(X)) == {"entry": [104], "y": [4]}
        with client.resume(session.id, outputs=["double"]) as resumed:
            assert resumed.step([0.0]).tolist() == [6], "one output in answer to an array"
        assert [step.output["entry"].item() for step in client.generate(session, XS, max_steps=2)] == [104, 108]


def test_optional_outputs_are_not_in_the_way_of_who_does_not_ask(client: BlockingClient) -> None:
    with client.session("watched") as session:
        assert session.step([20.0]).tolist() == [20], "one output: no dict needed"
    with client.session("watched", outputs=["y", "double"]) as session, pytest.raises(InputError, match="as a dict"):
        session.step([20.0])


def test_calls_without_a_session_ask_too(client: BlockingClient) -> None:
    xs = {"x": np.array([[1.0], [2.0]])}
    assert plain(client.predict("watched", xs, outputs=["double"])) == {"double": [[2], [6]]}
    names = ["entry", "double"]
    generated = list(client.generate("watched", XS, max_steps=2, outputs=names))
    assert [plain(step.output) for step in generated] == [
        {"entry": [101], "double": [2]},
        {"entry": [102], "double": [4]},
    ]
    with client.session("watched") as one, client.session("watched") as other:
        batch = client.step_batch("watched", [one.id, other.id], [[1.0], [2.0]], outputs=["entry"])
        assert batch.outputs.tolist() == [[101], [102]]


def test_a_name_that_there_is_not_is_refused_before_anything_is_opened(client: BlockingClient) -> None:
    before = client.sessions.count("watched")
    with (
        pytest.raises(InputError, match=r"has no output 'z'; it has double, y, entry"),
        client.session("watched", outputs=["y", "z"]),
    ):
        pass
    assert client.sessions.count("watched") == before
    with pytest.raises(TypeError, match="list of names"):
        client.predict("watched", XS, outputs="y")
