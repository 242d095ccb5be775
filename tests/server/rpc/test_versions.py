"""Models that come, change and go while a server runs, by call and by what is in the folder."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from recurra.openinference import open_inference_pb2 as pb
from recurra_client import BlockingClient, ModelNotFoundError, ModelRefusedError, connect
from recurra_server.runtimes.repository import find_models

from tests.support import foreign, models
from tests.support.attacks import Attack
from tests.support.hostile import ENDLESS, HOSTILE
from tests.support.openinference import service
from tests.support.server import ServerProcess, alive, children, running_server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def publish(root: Path, version: str, description: str = "") -> Path:
    """A running sum; its description makes its digest."""
    return models.publish(root, "sum", models.counter(description=description), version)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one version."""
    publish(tmp_path, "1")
    return tmp_path


@pytest.fixture
def server(root: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server on it, with so many workers as the test says."""
    with running_server(root, "--workers", getattr(request, "param", "1")) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> Iterator[BlockingClient]:
    """A connection to it."""
    with connect(server.target) as client:
        yield client


def health(server: ServerProcess, service: str) -> int:
    """What the health service says of a model."""
    with grpc.insecure_channel(server.target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return int(health_pb2_grpc.HealthStub(channel).Check(request).status)


def ready(server: ServerProcess, name: str, version: str = "") -> bool:
    """What the Open Inference Protocol says of it; its index must say the same."""
    with grpc.insecure_channel(server.target) as channel:
        infer = service(channel)
        listed = infer.RepositoryIndex(pb.RepositoryIndexRequest()).models
        found = any(model.name == name and version in ("", model.version) for model in listed)
        answer = infer.ModelReady(pb.ModelReadyRequest(name=name, version=version)).ready
    assert found == answer
    return bool(answer)


@pytest.mark.e2e
def test_a_replaced_version_takes_new_sessions_and_keeps_the_old_ones(
    client: BlockingClient, server: ServerProcess, root: Path
) -> None:
    with client.session("sum") as old:
        old.step([1.0])
        before = client.model("sum").digest
        publish(root, "1", "New.")
        after = client.load_model("sum", "1")
        assert (after.description, after.digest != before) == ("New.", True)
        with client.session("sum") as new:
            assert new.step([5.0]) == [5.0]
            assert old.step([2.0]) == [3.0], "it goes on where it was"
            digests = {session.model_digest for session in client.sessions.list()}
            assert digests == {before, after.digest}
            samples = server.metrics()
            for digest in digests:
                labels = {"model": "sum", "version": "1", "digest": digest}
                assert samples.get("recurra_sessions", **labels) == 1
                steps = samples.get("recurra_timesteps_total", **labels)
                assert steps == (2 if digest == before else 1)
            assert samples.get("recurra_model_info", model="sum", version="1", digest=before, latest="false") == 1
            assert client.load_model("sum", "1").digest == after.digest, "nothing has changed since"

            publish(root, "1")
            assert client.load_model("sum", "1").digest == before, "back to the former files"
            with client.session("sum") as newest:
                assert [one.step([1.0]).tolist() for one in (old, new, newest)] == [[4.0], [6.0], [1.0]]
                labels = {"model": "sum", "version": "1", "digest": before}
                assert server.metrics().get("recurra_sessions", **labels) == 2


@pytest.mark.e2e
def test_every_description_and_every_metric_of_a_model_names_its_digest(
    client: BlockingClient, server: ServerProcess, root: Path
) -> None:
    (digest,) = [file.digest() for file in find_models(root)]
    assert {model.digest for model in (*client.models(), client.model("sum"), client.load_model("sum"))} == {digest}
    with client.session("sum") as session:
        session.step([1.0])
        assert [one.model_digest for one in client.sessions.list()] == [digest]
        with grpc.insecure_channel(server.target) as channel:
            config = service(channel).ModelConfig(pb.ModelConfigRequest(name="sum")).config
        assert config.parameters["digest"].string_value == digest
        told = server.metrics().labels()
        # That is of a version in the repository, which could not even be read, perhaps.
        of_models = [labels for name, labels in told if "model" in labels and name != "recurra_model_load_failed"]
        assert len(of_models) > 20
        assert {labels.get("digest") for labels in of_models} == {digest}


@pytest.mark.e2e
def test_a_model_whose_last_session_has_ended_is_forgotten(
    client: BlockingClient, server: ServerProcess, root: Path
) -> None:
    with client.session("sum") as session:
        session.step([1.0])
        old = client.model("sum").digest
        publish(root, "1", "New.")
        client.load_model("sum")
    wanted = {"model": "sum", "version": "1", "digest": old}
    while server.metrics().get("recurra_sessions", **wanted) is not None:  # within a second or two
        client.model("sum")


@pytest.mark.e2e
def test_the_latest_version_is_the_one_that_sorts_last(client: BlockingClient, root: Path) -> None:
    for version in ("2", "10"):
        publish(root, version, version)
        client.load_model("sum", version)
        assert client.model("sum").version == version
    assert [model.version for model in client.models()] == ["10", "2", "1"]
    with client.session("sum", version="2") as session:
        assert client.unload_model("sum", "10") == ["10"]
        assert client.model("sum").version == "2"
        assert session.step([1.0]) == [1.0]
        assert client.load_model("sum").version == "10", "without a version, the latest of the repository"


@pytest.mark.e2e
@pytest.mark.parametrize("server", ["1", "2"], indirect=True, ids="workers={}".format)
def test_an_unloaded_model_takes_no_sessions_and_ends_none(client: BlockingClient, server: ServerProcess) -> None:
    digest = client.model("sum").digest
    with client.session("sum") as session:
        session.step([1.0])
        assert client.unload_model("sum") == ["1"]
        assert health(server, "sum") == health(server, "sum/1") == NOT_SERVING
        assert not ready(server, "sum")
        with pytest.raises(ModelNotFoundError), client.session("sum"):
            pass
        with pytest.raises(ModelNotFoundError):
            client.unload_model("sum")
        assert session.step([1.0]) == [2.0]
        with session.fork() as fork, client.resume(session.id) as resumed:
            assert fork.step([1.0]) == [3.0]
            assert resumed.step([2.0]) == [4.0]
            assert resumed.model.digest == digest
        assert client.sessions.count("sum") == 1

        client.load_model("sum")
        assert health(server, "sum") == health(server, "sum/1") == SERVING
        assert ready(server, "sum")
        with client.session("sum") as new, client.resume(session.id) as resumed:
            assert [one.step([1.0]).tolist() for one in (new, resumed)] == [[1.0], [5.0]]
            labels = {"model": "sum", "version": "1"}
            samples = server.metrics()
            assert samples.get("recurra_sessions", **labels) == 2, "the old one and the new one are of one model"
            assert samples.get("recurra_timesteps_total", **labels) == 6
            assert samples.get("recurra_model_info", **labels, latest="false") is None


@pytest.mark.e2e
def test_a_bad_version_never_takes_down_the_good_one(client: BlockingClient, server: ServerProcess, root: Path) -> None:
    good = client.model("sum").digest
    for name, spoil in (
        ("torn", lambda path: path.write_bytes(path.read_bytes()[:100])),
        ("empty", lambda path: path.write_bytes(b"")),
        ("lies", lambda path: path.with_name("model.yaml").write_text("format: 1\nstates: []\n")),
        ("other", lambda path: foreign.TIME_FIRST.publish(root, "sum", "2")),
    ):
        path = publish(root, "2", name)
        spoil(path)
        if name == "other":  # good by itself, but not what was asked for
            with pytest.raises(ModelRefusedError, match=r"is sha256:\w+, not 'sha256:0+…'"):
                client.load_model("sum", "2", digest=f"sha256:{0:064}")
        else:
            with pytest.raises(ModelRefusedError) as caught:
                client.load_model("sum", "2")
            assert len(caught.value.message.splitlines()) == 1
            assert health(server, "sum/2") == NOT_SERVING
        shutil.rmtree(path.parent)
        path = publish(root, "1", name)  # and in the place of the good one
        path.write_bytes(b"nonsense")
        with pytest.raises(ModelRefusedError):
            client.load_model("sum", "1")
        assert (client.model("sum").version, client.model("sum").digest) == ("1", good)
        assert health(server, "sum") == health(server, "sum/1") == SERVING
        assert (ready(server, "sum"), ready(server, "sum", "2")) == (True, False)
        with client.session("sum") as session:
            assert session.step([2.0]) == [2.0]


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("crashing", "the process that tried it died of signal 8"),
        ("endless", "it took more than 3 s to be loaded and tried"),
        ("huge", "Failed to allocate memory"),
    ],
)
def test_a_model_that_would_take_the_server_down_is_refused_and_the_others_go_on(
    root: Path, name: str, why: str, attack: Attack
) -> None:
    with running_server(root, "--load-seconds", "3") as server, connect(server.target) as client:
        HOSTILE[name].publish(root, "hostile")
        with client.session("sum") as session, ThreadPoolExecutor() as pool:
            loading = pool.submit(client.load_model, "hostile")
            total = 0
            while not loading.done():
                total += 1
                assert session.step([1.0]) == [total]
            with pytest.raises(ModelRefusedError, match=why):
                loading.result()
            assert session.step([1.0]) == [total + 1]
            assert health(server, "hostile/1") == health(server, "hostile") == NOT_SERVING
    attack(
        "model repository",
        f"loading a model, while others are served, that is {name}",
        "FAILED_PRECONDITION MODEL_REFUSED",
    )


@pytest.mark.e2e
@pytest.mark.parametrize("workers", ["1", "2"])
def test_models_that_would_take_the_server_down_are_left_out_at_the_start(
    root: Path, workers: str, attack: Attack
) -> None:
    """Those that come before them and behind them are served."""
    for name, model in HOSTILE.items():
        model.publish(root, name)
    models.publish(root, "zulu", models.counter())
    with (
        running_server(root, "--load-seconds", "3", "--workers", workers, "--log-format", "json") as server,
        connect(server.target) as client,
    ):
        assert [model.name for model in client.models()] == ["sum", "zulu"]
        for name, why in (("crashing", "died of signal 8"), ("endless", "more than 3 s"), ("huge", "allocate memory")):
            (told,) = [line for line in server.output.splitlines() if f'"model": "{name}"' in line]
            assert why in told
            assert health(server, name) == NOT_SERVING
        failed = {labels["model"]: server.metrics().get("recurra_model_load_failed", **labels)
                  for name, labels in server.metrics().labels() if name == "recurra_model_load_failed"}  # fmt: skip
        assert failed == {"crashing": 1, "endless": 1, "huge": 1, "sum": 0, "zulu": 0}
        with client.session("zulu") as session:
            assert session.step([2.0]) == [2.0]
    attack(
        "model repository",
        "models that crash, never end or take all memory, when the server starts",
        "left out; the others are served",
    )


@pytest.mark.e2e
@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_server_that_is_ended_while_it_tries_a_model_leaves_nothing_behind(
    root: Path, number: signal.Signals, workers: str
) -> None:
    ENDLESS.publish(root, "endless")
    recurra = str(Path(sys.executable).with_name("recurra"))
    command = [recurra, "serve", "--models", str(root), "--port", "0", "--metrics-port", "0", "--workers", workers]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        while not (trying := children(server.pid)):
            assert server.poll() is None
        server.send_signal(number)
        _, said = server.communicate(timeout=30)
    if number == signal.SIGTERM:
        assert (server.returncode, said) == (1, "recurra: told to end before it served\n")
    while any(alive(pid) for pid in trying):
        pass


@pytest.mark.e2e
def test_what_is_not_in_the_repository_is_not_loaded(client: BlockingClient) -> None:
    for name, version in (
        ("nothing", ""),
        ("sum", "9"),
        ("../sum", "1"),
        ("sum", "../../a"),
        ("", ""),
        ("x" * 999, ""),
    ):
        with pytest.raises(ModelNotFoundError, match="the model repository has no"):
            client.load_model(name, version)


@pytest.mark.e2e
def test_the_folder_is_watched(root: Path) -> None:
    with (
        running_server(root, "--watch", "0.1") as server,
        connect(server.target) as client,
        client.session("sum") as session,
    ):
        publish(root, "2", "New.")
        while client.model("sum").version != "2":
            assert session.step([0.0]) == [0.0]
        broken = publish(root, "3")
        broken.write_bytes(b"nonsense")
        while "model_not_loaded" not in server.output:
            client.model("sum")
        assert client.model("sum").version != "1"
        publish(root, "3", "Mended.")
        while client.model("sum").description != "Mended.":
            pass
        shutil.rmtree(root / "sum" / "3")
        while client.model("sum").version != "2":
            pass
        assert session.step([4.0]) == [4.0]
        assert session.model.version == "1"


@pytest.mark.e2e
def test_a_model_is_tried_without_the_fork_handlers_of_grpc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While calls come in they can get stuck, and the whole server with them."""
    monkeypatch.setenv("GRPC_VERBOSITY", "info")  # they tell of themselves
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "1")
    with running_server(root) as server, connect(server.target) as client:
        publish(root, "2")
        client.load_model("sum", "2")
    assert "fork" not in server.output


@pytest.mark.e2e
def test_many_sessions_step_through_a_replacement(client: BlockingClient, root: Path) -> None:
    """Not one step is lost, or counted by the wrong model."""
    sessions = [client.session("sum").open() for _ in range(20)]
    totals = np.zeros(20)
    rng = np.random.default_rng(0)
    for turn in range(12):
        if turn % 3 == 2:
            publish(root, "1", str(turn))
            client.load_model("sum", "1")
            sessions.append(client.session("sum").open())
            totals = np.append(totals, 0)
        x = rng.integers(0, 9, len(sessions))
        totals += x
        answers = [session.step([value]) for session, value in zip(sessions, x, strict=True)]
        np.testing.assert_array_equal(np.concatenate(answers), totals)
    assert len({session.model.digest for session in sessions}) == 5
    for session in sessions:
        session.close()
