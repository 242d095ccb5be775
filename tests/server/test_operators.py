"""Operators that ONNX does not have: only those of libraries that are listed."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from recurra_client import ModelRefusedError, connect
from recurra_server.runtimes.rehearsal import rehearse

from tests.support import models, operators
from tests.support.attacks import Attack
from tests.support.server import ServerProcess, running_server

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if operators.COMPILER is None:
        pytest.skip("there is no C compiler")
    return operators.build(tmp_path_factory.mktemp("operators"))


def other() -> onnx.ModelProto:
    """A model with an operator of the library's domain that it does not have."""
    model = operators.doubling()
    model.graph.node[-1].op_type = "Thrice"
    return model


def test_a_model_is_served_with_the_operators_that_are_listed_and_no_others(library: Path, tmp_path: Path) -> None:
    models.publish(tmp_path, "doubling", operators.doubling())
    flags = ("--operators", str(library), "--workers", "2", "--no-metrics")
    with running_server(tmp_path, *flags, ready="whoever can") as server, connect(server.target) as client:
        with client.session("doubling") as session:
            assert [float(session.step([1])[0]) for _ in range(3)] == [2, 4, 6]
        models.publish(tmp_path, "doubling", operators.doubling(), version="2")
        assert client.load_model("doubling").version == "2"
        models.publish(tmp_path, "other", other())
        with pytest.raises(ModelRefusedError, match="Thrice"):
            client.load_model("other")


async def test_a_model_that_uses_others_is_refused(tmp_path: Path, attack: Attack) -> None:
    path = models.publish(tmp_path, "doubling", operators.doubling())
    (said,) = [said async for said in rehearse([path], sessions=4, seconds=60)]
    assert "recurra.test" in said
    attack("model repository", "operators of a library that is not listed", "MODEL_REFUSED")


def recurra(*arguments: Path | str, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("recurra")), *map(str, arguments)]
    environment = {**os.environ, **environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


def test_it_can_be_inspected_and_verified_with_them(library: Path, tmp_path: Path) -> None:
    path = models.publish(tmp_path, "doubling", operators.doubling())
    for done in (
        recurra("inspect", path, "--operators", library),
        recurra("verify", path, RECURRA_OPERATORS=str(library)),
    ):
        assert done.returncode == 0, done.stderr
        assert "Verified" in done.stdout + done.stderr
    assert recurra("verify", path).returncode == 1


def test_what_is_no_such_library_is_one_line(tmp_path: Path) -> None:
    models.publish(tmp_path / "models", "counter", models.counter())
    (tmp_path / "text.so").write_text("no library")
    for name, why in (("absent.so", "No such file or directory"), ("text.so", "is no library of custom operators")):
        with pytest.raises(RuntimeError, match=f"recurra: --operators: .*{name}.*{why}") as refusal:
            ServerProcess(tmp_path / "models", "--operators", str(tmp_path / name))
        assert str(refusal.value).count("\n") == 2
