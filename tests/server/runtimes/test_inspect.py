"""`recurra inspect`: what it guesses, what it is not sure of, and what it finds by trying."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import onnx
import pytest
import yaml
from recurra_server import inspection
from recurra_server.engine.signature import Signature, SignatureError
from recurra_server.runtimes.metadata import read_signature
from recurra_server.runtimes.onnx import OnnxRuntime

from tests.support import foreign, models


class Inspect(Protocol):
    """Run the command: the YAML that it writes (empty where none), and what else it says."""

    def __call__(self, path: Path, *, fails: bool = False) -> tuple[dict[str, Any], str]:
        """Inspect a file."""
        ...


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Inspect:
    """The command, in this process."""
    monkeypatch.setenv("COLUMNS", "300")

    def run(path: Path, *, fails: bool = False) -> tuple[dict[str, Any], str]:
        status = 0
        try:
            inspection.inspect(path)
        except SystemExit as ended:
            status = int(str(ended.code))
        said = capsys.readouterr()
        assert status == int(fails), said.err
        return yaml.safe_load(said.out) or {}, said.err

    return run


def test_the_command(tmp_path: Path) -> None:
    """As a person runs it: beside the model, into the file that it is to become."""
    path = foreign.TIME_FIRST.publish(tmp_path, "model")
    bare(path)
    recurra = Path(sys.executable).with_name("recurra")
    command = ["sh", "-c", f"'{recurra}' inspect model.onnx > model.yaml"]
    subprocess.run(command, cwd=path.parent, check=True, timeout=60)
    assert OnnxRuntime(path).signature.has_time


def silero(name: str) -> Path:
    """A file of the package."""
    spec = find_spec("silero_vad")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "data" / name


def bare(path: Path) -> Signature:
    """Take the YAML away; return what it said."""
    beside = path.with_name("model.yaml")
    signature = read_signature({}, yaml.safe_load(beside.read_text()))
    beside.unlink()
    return signature


@pytest.mark.parametrize("name", ["time first", "time last", "no batch", "convolution cache", "dtypes", "quantised"])
def test_what_the_graph_tells_is_guessed(tmp_path: Path, name: str, inspect: Inspect) -> None:
    """All but initial values and whether rows are independent, which no graph tells; the rest to the letter."""
    path = foreign.ALL[name].publish(tmp_path, "model")
    true = bare(path)
    fields, _ = inspect(path)
    guessed = read_signature({}, fields)
    assert guessed.inputs == true.inputs
    assert guessed.outputs == true.outputs
    assert [(s.input_name, s.output_name, s.dims, s.batch_axis) for s in guessed.states] == [
        (s.input_name, s.output_name, s.dims, s.batch_axis)
        for s in sorted(true.states, key=lambda state: [s.input_name for s in guessed.states].index(state.input_name))
    ]


def test_sizes_of_one_are_taken_for_the_batch_and_it_runs(tmp_path: Path, inspect: Inspect) -> None:
    path = foreign.FIXED.publish(tmp_path, "model")
    bare(path)
    fields, said = inspect(path)
    assert (fields["inputs"][0]["dims"], fields["inputs"][0]["batch_axis"]) == ([1, 2], 0)
    assert "Tried: sessions run one by one, one step at a time, 8 bytes of state each." in said


def test_a_guess_of_our_own_exports_is_what_they_say(tmp_path: Path, inspect: Inspect) -> None:
    for cell in (models.lstm, models.gru, models.rnn):
        model = cell()
        true = read_signature({"recurra.signature": model.metadata_props[0].value})
        del model.metadata_props[:]
        path = models.publish(tmp_path, cell.__name__, model)
        fields, said = inspect(path)
        assert read_signature({}, fields) == true
        assert "Tried: sessions share calls, several steps at once" in said


def test_silero_needs_two_answers_and_then_loads(tmp_path: Path, inspect: Inspect) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(silero("silero_vad.onnx").read_bytes())
    fields, said = inspect(path)
    (state,) = fields["states"]
    assert (state["input_name"], state["output_name"], state["dims"], state["batch_axis"]) == (
        "state", "stateN", [2, 128], 1
    )  # fmt: skip
    assert "the graph leaves the size of axis 1 open" in said
    path.with_name("model.yaml").write_text(yaml.safe_dump(fields))
    _, said = inspect(path, fails=True)
    assert "It would not be loaded: signature.inputs[0].dims[0]" in said
    fields["inputs"][0] |= {"dims": [512], "context": 64}
    fields["constants"][0]["value"] = 16_000
    path.with_name("model.yaml").write_text(yaml.safe_dump(fields))
    nothing, said = inspect(path)
    assert nothing == {}
    assert "It loads, as model.yaml says; sessions share calls, one step at a time, 1280 bytes of state each." in said
    assert "Verified: it answers alike" in said
    assert "!" not in said


def test_a_batch_that_is_fixed_and_an_axis_of_time_are_told_apart(inspect: Inspect) -> None:
    fields, said = inspect(silero("silero_vad_openvino_16k.onnx"))
    assert "state: axis 1 of size 1 is taken for a batch that is fixed at 1" in said
    assert fields["states"][0]["dims"] == [2, 128]
    fields, _ = inspect(silero("silero_vad_16k_sequence.onnx"))
    assert (fields["inputs"][0]["batch_axis"], fields["inputs"][0]["time_axis"]) == (None, 0)
    assert [(s["input_name"], s["output_name"]) for s in fields["states"]] == [("h", "hn"), ("c", "cn")]


@pytest.mark.parametrize("x", ["1, 5, 4", "B, 5, 4", "B, T, 4"])
def test_steps_that_were_fixed_when_the_graph_was_exported_are_a_doubt(
    tmp_path: Path, inspect: Inspect, x: str
) -> None:
    """As torch.onnx.export leaves them by default; the size of an example is not that of a step."""
    batch = x[0]
    graph = f"""<ir_version: 10, opset_import: ["" : 20]>
    g (float[{x}] x, float[{batch}, 4] h) => (float[{batch}, 5, 4] y, float[{batch}, 4] h_out) <int64[1] one = {{1}}> {{
        h_out = Tanh (h)
        row = Unsqueeze (h_out, one)
        y = Add (x, row)
    }}"""
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(graph), path)
    _, said = inspect(path)
    assert said.count(f"x is [{x}] and y is [{batch}, 5, 4]: if axis 1 holds steps, 5 at once is all") == 1


def test_names_that_do_not_tell_are_said_to_be_uncertain(tmp_path: Path, inspect: Inspect) -> None:
    path = foreign.STATES.publish(tmp_path, "model")
    bare(path)
    fields, said = inspect(path)
    assert {(s["input_name"], s["output_name"]) for s in fields["states"]} == {("foo", "bar"), ("p", "q"), ("n", "z")}
    assert "bar -> foo is taken for a state by shape and order" in said


def test_rows_that_depend_on_one_another_are_found(tmp_path: Path, inspect: Inspect) -> None:
    path = foreign.QUANTISED.publish(tmp_path, "model")
    assert "!" not in inspect(path)[1]
    path.with_name("model.yaml").write_text(path.with_name("model.yaml").read_text().replace("batching: off\n", ""))
    assert "a session's answers depend on who shares its call" in inspect(path)[1]


def test_states_that_are_swapped_are_found(tmp_path: Path, inspect: Inspect) -> None:
    model = models.lstm()
    field = model.metadata_props[0]
    field.value = field.value.replace("h_out", "?").replace("c_out", "h_out").replace("?", "c_out")
    path = models.publish(tmp_path, "lstm", model)
    OnnxRuntime(path)  # every shape fits
    said = inspect(path)[1]
    assert "they are paired wrongly" in said
    assert "Verified" not in said


def test_what_cannot_be_served_is_said(tmp_path: Path, inspect: Inspect) -> None:
    path = tmp_path / "model.onnx"
    graph = onnx.parser.parse_model('<ir_version: 10, opset_import: ["" : 20]> g (string[N] x) => (string[N] y) {'
                                    " y = Identity(x) }")  # fmt: skip
    onnx.save(graph, path)
    assert "x is a tensor(string): only tensors of numbers are served" in inspect(path, fails=True)[1]
    path.write_bytes(b"nonsense")
    assert "recurra: " in inspect(path, fails=True)[1]
    with pytest.raises(SignatureError, match="recurra inspect"):
        OnnxRuntime(models.publish(tmp_path, "bare", onnx.parser.parse_model(
            '<ir_version: 10, opset_import: ["" : 20]> g (float[N] x) => (float[N] y) { y = Neg(x) }')))  # fmt: skip
