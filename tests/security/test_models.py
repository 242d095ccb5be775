"""Model files of somebody who means ill, and names that are meant to lead out of the repository."""

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from recurra.openinference import open_inference_pb2 as oip
from recurra.v1.models_pb2 import GetModelRequest, ListModelsRequest, LoadModelRequest, UnloadModelRequest
from recurra.v1.sessions_pb2 import GetSessionRequest, OpenSessionRequest

from tests.security.conftest import failure, reason_of, refused
from tests.support import models
from tests.support.attacks import Attack
from tests.support.server import ServerProcess, children, running_server
from tests.support.wire import Stubs

SECRET = 12345.678


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository, beside a folder that is none of its business."""
    folder = tmp_path_factory.mktemp("hostile")
    models.publish(folder / "models", "counter", models.counter())
    models.publish(folder / "outside", "other", models.counter())
    (folder / "secret.bin").write_bytes(np.full(1, SECRET, np.float32).tobytes())
    return folder / "models"


@pytest.fixture(scope="module")
def server(root: Path) -> Iterator[ServerProcess]:
    with running_server(root, "--no-metrics", "--load-seconds", "30", ready="whoever can") as process:
        yield process


@pytest.fixture
def stubs(server: ServerProcess) -> Iterator[Stubs]:
    stubs = Stubs(server.target)
    yield stubs
    stubs.channel.close()


def with_external_data(location: str) -> bytes:
    """A counter that adds a number which is to come from another file."""
    model = models.counter()
    graph = model.graph
    number = numpy_helper.from_array(np.zeros(1, np.float32), "stolen")
    number.ClearField("raw_data")
    number.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "4")):
        number.external_data.add(key=key, value=value)
    graph.initializer.append(number)
    output = graph.output[0].name
    for node in graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
        node.input[:] = [f"{name}_before" if name == output else name for name in node.input]
    graph.node.append(helper.make_node("Add", [f"{output}_before", "stolen"], [output]))
    return model.SerializeToString()


def with_foreign_operator() -> bytes:
    model = models.counter()
    model.graph.node[0].op_type, model.graph.node[0].domain = "RunCommand", "evil.operators"
    model.opset_import.append(helper.make_opsetid("evil.operators", 1))
    return model.SerializeToString()


def with_endless_shape() -> bytes:
    """A model whose state would take all memory there is."""
    model = models.counter()
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim[1:]:
            axis.dim_value = 1 << 40
    return model.SerializeToString()


HOSTILE: dict[str, Callable[[Path], bytes]] = {
    "external data one folder up": lambda _: with_external_data("../../../secret.bin"),
    "external data at an absolute path": lambda root: with_external_data(str(root.parent / "secret.bin")),
    "an operator of its own": lambda _: with_foreign_operator(),
    "a state of a petabyte": lambda _: with_endless_shape(),
    "no model at all": lambda _: b"\x7fELF" + bytes(1000),
    "an empty file": lambda _: b"",
    "half a model": lambda _: models.counter().SerializeToString()[:100],
}


@pytest.mark.parametrize("tried", HOSTILE)
def test_a_hostile_model_is_refused_and_the_server_goes_on(
    root: Path, stubs: Stubs, tried: str, attack: Attack
) -> None:
    folder = root / "hostile" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(HOSTILE[tried](root))
    try:
        error = failure(lambda: stubs.models.LoadModel(LoadModelRequest(name="hostile"), timeout=60))
        assert error.code().name == "FAILED_PRECONDITION"
        assert str(SECRET)[:5] not in error.details()
    finally:
        shutil.rmtree(folder.parent)
    assert [model.name for model in stubs.models.ListModels(ListModelsRequest()).models] == ["counter"]
    attack("model repository", tried, "FAILED_PRECONDITION MODEL_REFUSED; what was served goes on")


def test_external_data_beside_the_model_is_taken(root: Path, stubs: Stubs) -> None:
    folder = root / "beside" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(with_external_data("weights.bin"))
    (folder / "weights.bin").write_bytes(np.ones(1, np.float32).tobytes())
    assert stubs.models.LoadModel(LoadModelRequest(name="beside")).model.name == "beside"
    stubs.models.UnloadModel(UnloadModelRequest(name="beside"))
    shutil.rmtree(folder.parent)


def test_a_link_out_of_the_repository_is_not_followed(root: Path, stubs: Stubs, attack: Attack) -> None:
    (root / "link").symlink_to(root.parent / "outside" / "other")
    folder = root / "file" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").symlink_to(root.parent / "outside" / "other" / "1" / "model.onnx")
    try:
        for name in ("link", "file"):
            call = LoadModelRequest(name=name)
            assert refused(lambda c=call: stubs.models.LoadModel(c)) == "NOT_FOUND MODEL_NOT_FOUND"  # type: ignore[misc]
    finally:
        (root / "link").unlink()
        shutil.rmtree(folder.parent)
    attack("model repository", "a link that leads out of the repository", "NOT_FOUND MODEL_NOT_FOUND")


def test_a_description_that_is_a_link_out_of_the_repository_is_not_read(
    root: Path, stubs: Stubs, attack: Attack
) -> None:
    secret = root.parent / "secrets.ini"
    secret.write_text("db_password: hunter2\nuser: db: 1\n")
    description = models.publish(root, "told", models.counter()).with_name("model.yaml")
    try:
        for target in (secret, Path("../../../secrets.ini"), Path("/dev/zero")):
            description.symlink_to(target)
            error = failure(lambda: stubs.models.LoadModel(LoadModelRequest(name="told"), timeout=60))
            assert reason_of(error) == "FAILED_PRECONDITION MODEL_REFUSED"
            assert "model.yaml is a link out of the repository" in error.details()
            assert "hunter2" not in str(error)
            description.unlink()
        attack("model repository", "a model.yaml that is a link out of it", "FAILED_PRECONDITION MODEL_REFUSED")

        secret.rename(description)  # what is in the repository is read, and not told to whoever asks
        error = failure(lambda: stubs.models.LoadModel(LoadModelRequest(name="told"), timeout=60))
        assert "model.yaml cannot be read: line 2, column 9: mapping values are not allowed here" in error.details()
        assert "hunter2" not in str(error)
        assert "user" not in error.details()
    finally:
        shutil.rmtree(root / "told")


def test_files_may_be_links_within_the_repository_as_kubernetes_mounts_them(root: Path, stubs: Stubs) -> None:
    mounted = root / "mounted" / "1"
    models.publish(root, "mounted", models.counter())
    (mounted / "..data_1").mkdir()
    (mounted / "..data").symlink_to("..data_1")
    (mounted / "..data_1" / "model.yaml").write_text("format: 1\ndescription: mounted\n")
    (mounted / "model.onnx").rename(mounted / "..data_1" / "model.onnx")
    for name in ("model.onnx", "model.yaml"):
        (mounted / name).symlink_to(f"..data/{name}")
    models.publish(root, "shared", models.counter()).with_name("model.yaml").symlink_to(mounted / "model.yaml")
    for name in ("mounted", "shared"):
        assert stubs.models.LoadModel(LoadModelRequest(name=name), timeout=60).model.description == "mounted"
        stubs.models.UnloadModel(UnloadModelRequest(name=name))
    for name in ("mounted", "shared"):
        shutil.rmtree(root / name)


NAMES = (
    "../outside/other",
    "..",
    ".",
    "/etc/passwd",
    "counter/../counter",
    "counter\x00",
    "counter/1",
    "~",
    "",
    "%2e%2e",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_does_not_lead_out_of_the_repository(stubs: Stubs, name: str, attack: Attack) -> None:
    calls: list[Callable[[], object]] = [
        lambda: stubs.models.LoadModel(LoadModelRequest(name=name)),
        lambda: stubs.models.LoadModel(LoadModelRequest(name="counter", version=name or "..")),
        lambda: stubs.models.UnloadModel(UnloadModelRequest(name=name)),
        lambda: stubs.sessions.OpenSession(OpenSessionRequest(model=name)),
        lambda: stubs.sessions.GetSession(GetSessionRequest(session_id=name)),
        lambda: stubs.open_inference.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name=name)),
        lambda: stubs.open_inference.ModelMetadata(oip.ModelMetadataRequest(name=name)),
    ]
    for call in calls:
        assert refused(call).startswith("NOT_FOUND")
    bad_id = OpenSessionRequest(model="counter", session_id=f"{name}/")
    assert refused(lambda: stubs.sessions.OpenSession(bad_id)) == "INVALID_ARGUMENT SESSION_ID"
    tried = "paths as names of models, versions and sessions (../, /etc/passwd, NUL ...)"
    attack("model repository", tried, "NOT_FOUND, or INVALID_ARGUMENT SESSION_ID")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_name_that_no_model_can_have_goes_no_further_than_the_call(root: Path, workers: str, attack: Attack) -> None:
    """With several workers it would go to the process that keeps them, in a line that has a bound."""
    with running_server(root, "--no-metrics", "--workers", workers, ready="whoever can") as server:
        stubs, members = Stubs(server.target), children(server.pid)
        for text in ("x" * 65, "\x01" * (3 << 20)):
            calls: list[tuple[Callable[..., object], object]] = [
                (stubs.models.GetModel, GetModelRequest(name=text)),
                (stubs.models.GetModel, GetModelRequest(name="counter", version=text)),
                (stubs.models.LoadModel, LoadModelRequest(name=text)),
                (stubs.models.LoadModel, LoadModelRequest(name="counter", version=text)),
                (stubs.models.UnloadModel, UnloadModelRequest(name=text)),
                (stubs.models.UnloadModel, UnloadModelRequest(name="counter", version=text)),
                (stubs.open_inference.RepositoryModelLoad, oip.RepositoryModelLoadRequest(model_name=text)),
                (stubs.open_inference.RepositoryModelUnload, oip.RepositoryModelUnloadRequest(model_name=text)),
            ]
            for call, request in calls:
                assert refused(partial(call, request, timeout=20)) == "NOT_FOUND MODEL_NOT_FOUND"
            refusal = failure(
                partial(stubs.models.LoadModel, LoadModelRequest(name="counter", digest=text), timeout=20)
            )
            assert reason_of(refusal) == "FAILED_PRECONDITION MODEL_REFUSED"
            assert len(refusal.details()) < 500
        assert not stubs.models.LoadModel(LoadModelRequest(name="counter"), timeout=20).changed, "all workers answer"
        assert children(server.pid) == members
    attack(
        "model repository",
        "names, versions and digests of 65 characters, of 3 MiB of control characters",
        "NOT_FOUND, or MODEL_REFUSED",
    )
