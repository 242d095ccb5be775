"""`recurra verify` of models that others exported: good ones pass, and of a bad one it is said what to do."""

import subprocess
import sys
from pathlib import Path

import pytest
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.verification import advice, checks_of, find

from tests.support import foreign, models
from tests.support.hostile import CRASHING


def verify(*arguments: Path | str) -> "subprocess.CompletedProcess[str]":
    """The command, as a person runs it."""
    command = [str(Path(sys.executable).with_name("recurra")), "verify", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_a_repository_of_all_kinds_of_models_passes(tmp_path: Path) -> None:
    for name, model in foreign.ALL.items():
        model.publish(tmp_path, name.replace(" ", "-"))
    done = verify(tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    parts = dict(zip([path.parts[-3] for path in find(tmp_path)], done.stdout.split("Verified:")[1:], strict=True))
    assert "in random chunks" in parts["time-first"]
    assert "in one batch" in parts["time-first"]
    assert "in one batch" not in parts["fixed"], "it is run one by one"
    assert "in random chunks" not in parts["states"], "it has no time axis"


def test_rows_that_depend_on_one_another_are_found_and_what_to_do_is_said(tmp_path: Path) -> None:
    path = foreign.QUANTISED.publish(tmp_path, "int8")
    description = path.with_name("model.yaml")
    whole = description.read_text()
    description.write_text(whole.replace("batching: off\n", ""))
    done = verify(path)
    assert done.returncode == 1
    assert "beside other mates" in done.stdout
    assert "too much" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "set `batching: off` in model.yaml" in done.stderr
    assert "looks ahead" not in done.stderr, "what is wrong, and nothing else"
    description.write_text(whole)
    assert verify(path.parent).returncode == 0


@pytest.mark.parametrize(
    ("graph", "advice"),
    [
        ("sums = CumSum (x, zero)  y = Add (sums, h)  after = Identity (h)", "its states do not carry all"),
        ("all = ReduceSum (x, axis)  y = Add (x, all)  after = Add (h, all)", "it looks ahead"),
        ("sums = CumSum (x, zero)  y = Log (sums)  after = Identity (h)", "become NaN or infinite"),
    ],
)
def test_what_a_stream_cannot_do_is_found(tmp_path: Path, graph: str, advice: str) -> None:
    header = "g (float[T, B, 2] x, float[1, B, 2] h) => (float[T, B, 2] y, float[1, B, 2] after)"
    constants = "<int64 zero = {0}, int64[1] axis = {0}>"
    path = foreign.Foreign(f"{header} {constants} {{ {graph} }}", foreign.TIME_FIRST.description).publish(
        tmp_path, "bad"
    )
    done = verify(path)
    assert done.returncode == 1
    assert advice in done.stderr


def test_what_most_callers_of_a_model_with_optional_outputs_get_is_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = models.publish(tmp_path, "watched", models.with_double(models.counter()))
    checks = checks_of(OnnxRuntime(path))
    assert advice(checks) == []
    assert "without optional outputs" in [check.name for check in checks]
    otherwise = models.counter()  # as if something else were left of the graph
    otherwise.graph.node[2].op_type = "Sub"
    monkeypatch.setattr("recurra_server.runtimes.onnx.without", lambda *_: otherwise.SerializeToString())
    (said,) = advice(checks_of(OnnxRuntime(path)))
    assert "without optional outputs differs by" in said
    assert "do not declare them `optional`" in said
    plain = models.publish(tmp_path, "plain", models.counter())
    assert "without optional outputs" not in [check.name for check in checks_of(OnnxRuntime(plain))]


def test_of_a_folder_the_good_ones_are_verified_beside_those_that_crash(tmp_path: Path) -> None:
    CRASHING.publish(tmp_path, "crashing")
    models.publish(tmp_path, "good", models.counter())
    done = verify(tmp_path)
    assert done.returncode == 1
    assert "step by step" in done.stdout.split("good/1/model.onnx")[1]
    assert "1 of 2 models do not verify" in done.stderr
    assert "died of signal 8" in done.stderr


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.onnx", "is not a file"),
        (lambda folder: folder, "there is no model.onnx below it"),
        (lambda folder: foreign.STATES.publish(folder, "bare"), "`recurra inspect` writes one"),
    ],
)
def test_what_cannot_be_verified_is_said_in_one_line(tmp_path: Path, make: "object", message: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    if path.name == "model.onnx":
        path.with_name("model.yaml").unlink()
    done = verify(path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
