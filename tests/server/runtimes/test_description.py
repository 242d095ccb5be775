"""What stands beside a model: model.yaml, external data, and the digest over all of it."""

import hashlib
import os
import subprocess
from pathlib import Path

import onnx
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from recurra_server.engine.signature import Signature, SignatureError
from recurra_server.runtimes.metadata import read_description, read_signature
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.probe import probe
from recurra_server.runtimes.repository import find_models

from tests.support import foreign, models
from tests.support.attacks import Attack
from tests.support.fuzzing import CASES

COUNTER = """format: 1
inputs: [{name: x, dtype: float32, dims: [1]}]
outputs: [{name: y, dtype: float32, dims: [1]}]
states: [{input_name: s_in, output_name: s_out, dtype: float32, dims: [1]}]
"""


def described(tmp_path: Path, text: str) -> Signature:
    """The signature of a graph with nothing in it and this model.yaml."""
    (tmp_path / "model.yaml").write_text(text)
    return read_signature({}, read_description(tmp_path / "model.onnx"))


def test_a_field_of_the_yaml_takes_the_place_of_the_metadata(tmp_path: Path) -> None:
    path = models.publish(tmp_path, "counter", models.counter(description="From the file.", step_seconds=0.5))
    path.with_name("model.yaml").write_text("format: 1\ndescription: From the YAML.\nbatching: off\n")
    signature = OnnxRuntime(path).signature
    assert (signature.description, signature.step_seconds) == ("From the YAML.", 0.5)
    assert (signature.batching, signature.one_by_one) == (False, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- 1\n", "must be a mapping that begins with `format: 1`"),
        ("description: x\n", "format in model.yaml is null"),
        ("format: 1\nformat: 1\n", "'format' stands twice"),
        ("format: 1\non: x\n", "a key that is no text"),
        ("format: 1\na: &a [x]\nb: *a\n", r"alias \(\*name\)"),
        ("format: 1\nx: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("format: 1\ninputs: [" * 5000, "cannot be read"),
        ("format: 1\ndescription: \x00\n", "cannot be read"),
        (COUNTER + "step_seconds: .nan\n", "JSON cannot hold"),
        (COUNTER + "step_seconds: 2020-01-01\n", "JSON cannot hold"),
        (COUNTER + "baching: off\n", "signature.baching"),
        (COUNTER.replace("dims: [1]", 'dims: ["1"]'), r"signature.inputs\[0\].dims\[0\]"),
        (COUNTER.replace("dims: [1]", "dims: [FILL_IN]"), r"dims\[0\]: FILL_IN stands where the graph does not tell"),
        (COUNTER.replace("dims: [1]", "dims: [9999999999]"), "more than 64 MiB"),
        (COUNTER.replace("dims: [1]}]\no", "dims: [1], context: 3, context_axis: 1}]\no"), "context_axis 1 must be"),
        (COUNTER.replace("[{input", "[{initial: 1.0e+60, input"), "s_in: float32 cannot hold its value"),
        (COUNTER.replace("[{input", "[{initial: [1, 2], input"), r"its value has shape \[2\]; its dims are \[1\]"),
        (COUNTER + "constants: [{name: sr, dtype: int64}]\n", "needs a value, or per_session"),
        (COUNTER + "constants: [{name: sr, dtype: int8, value: 16000}]\n", "int8 cannot hold its value"),
        (COUNTER + "constants: [{name: sr, dtype: int8, value: [[1], 2]}]\n", "not all of one length"),
    ],
)
def test_a_yaml_that_cannot_be_used_says_what_to_change(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SignatureError, match=message):
        described(tmp_path, text)


def test_an_empty_yaml_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("\n")
    assert read_description(tmp_path / "model.onnx") is None


def test_a_large_or_repetitive_yaml_is_refused(tmp_path: Path, attack: Attack) -> None:
    with pytest.raises(SignatureError, match="larger than 1024 KiB"):
        described(tmp_path, "x" * 1_100_000)
    keys = "".join(f"k{number}: 0\n" for number in range(20_000))
    with pytest.raises(SignatureError, match="'k7' stands twice"):
        described(tmp_path, f"format: 1\n{keys}k7: 0\n")
    attack("model repository", "a model.yaml that is large or repeats its keys", "refused")


@settings(max_examples=CASES, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.one_of(
        st.binary(max_size=200),
        st.text("{}[]:,-&*!|>'\"\n ab01#%@?", max_size=120).map(lambda text: (COUNTER + text).encode()),
        st.tuples(st.integers(0, len(COUNTER)), st.binary(max_size=4)).map(
            lambda cut: COUNTER.encode()[: cut[0]] + cut[1] + COUNTER.encode()[cut[0] + len(cut[1]) :]
        ),
    )
)
def test_a_hostile_yaml_is_refused_or_read(
    text: bytes, tmp_path_factory: pytest.TempPathFactory, attack: Attack
) -> None:
    """Whatever it holds: it is a signature or a SignatureError, and nothing else."""
    folder = tmp_path_factory.getbasetemp() / "hostile"
    folder.mkdir(exist_ok=True)
    (folder / "model.yaml").write_bytes(text)
    try:
        read_signature({}, read_description(folder / "model.onnx"))
        event("read")
    except SignatureError:
        event("refused")
    attack("model repository", "a model.yaml of any bytes", "read or refused")


def test_a_graph_that_the_yaml_does_not_fit_is_refused(tmp_path: Path) -> None:
    path = foreign.CONSTANTS.publish(tmp_path, "constants")
    whole = path.with_name("model.yaml").read_text()
    for old, new, message in (
        ("  - {name: rate, dtype: int64, dims: [1], value: [1000]}\n", "", "does not name: rate; add each to"),
        ("name: h,", "name: hh,", "the graph has no input 'hh'"),
        ("output_name: after, dtype: float32", "output_name: after, dtype: float16", "is float16 in the signature"),
        ("dims: [2], batch_axis: 1", "dims: [2], batch_axis: 0", "'speaker' has shape"),
    ):
        path.with_name("model.yaml").write_text(
            whole.replace(old.replace("name: h,", "input_name: h,"), new.replace("name: hh,", "input_name: hh,"))
        )
        with pytest.raises(SignatureError, match=message):
            OnnxRuntime(path)


def test_a_state_that_is_not_what_it_is_said_to_be_is_found_when_it_is_tried(tmp_path: Path) -> None:
    path = foreign.STATES.publish(tmp_path, "states")
    text = path.with_name("model.yaml").read_text()
    swapped = text.replace("output_name: bar", "output_name: y").replace("outputs: [{name: y", "outputs: [{name: bar")
    path.with_name("model.yaml").write_text(swapped)
    with pytest.raises(SignatureError, match=r"'bar' came as float32 \[2, 1\]; .* says float32 \[1, 2\]"):
        probe(OnnxRuntime(path), 3)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """An LSTM whose weights lie in a file of their own, which is good."""
    path = tmp_path / "lstm" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    onnx.save(models.lstm(16, 64), path, save_as_external_data=True, location="weights.bin", size_threshold=64)
    probe(OnnxRuntime(path), 2)
    return path


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *(("location", value) for value in ("../weights.bin", "sub/../../weights.bin", "/etc/passwd", "/dev/zero")),
        *(("location", value) for value in ("file:///etc/passwd", "no.bin", "", ".", "a\0b", "x" * 5000, "pipe")),
        *(("offset", value) for value in ("-8", str(2**62), str(2**64), "x")),
        *(("length", value) for value in ("1", str(2**62), "-1")),
    ],
)
def test_external_data_is_taken_only_from_the_models_folder(
    outside: Path, entry: str, value: str, attack: Attack
) -> None:
    (outside.parents[1] / "weights.bin").write_bytes(outside.with_name("weights.bin").read_bytes())
    os.mkfifo(outside.with_name("pipe"))
    model = onnx.load(outside, load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.external_data:
            (found,) = [one for one in tensor.external_data if one.key == entry] or [
                tensor.external_data.add(key=entry)
            ]
            found.value = value
    outside.write_bytes(model.SerializeToString())
    with pytest.raises(Exception, match=r"[Ee]xternal|RUNTIME_EXCEPTION|parse value"):
        OnnxRuntime(outside)
    attack(
        "model repository",
        "external data from outside the model's folder, from a pipe, beyond the file's end",
        "refused",
    )


def test_a_link_out_of_the_models_folder_is_refused_and_one_inside_is_not(
    outside: Path, tmp_path: Path, attack: Attack
) -> None:
    (file,) = find_models(tmp_path)
    weights = outside.with_name("weights.bin")
    weights.rename(outside.with_name("real.bin"))
    weights.symlink_to("real.bin")
    probe(OnnxRuntime(outside), 2)
    file.digest()
    weights.unlink()
    outside.with_name("real.bin").rename(tmp_path / "real.bin")
    weights.symlink_to(tmp_path / "real.bin")
    with pytest.raises(Exception, match="escapes model directory"):
        OnnxRuntime(outside)
    with pytest.raises(OSError, match=r"weights.bin is a link out of the model's folder"):
        file.digest()
    attack("model repository", "external data by a link that leads out of the model's folder", "refused")


def test_a_model_file_may_be_a_link_within_the_repository(tmp_path: Path) -> None:
    root = tmp_path / "models"
    first = models.publish(root, "counter", models.counter())
    path = root / "counter" / "2" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.symlink_to(first)
    one, two = find_models(root)
    assert one.digest() == two.digest()
    probe(OnnxRuntime(two.path), 2)


def test_a_link_out_of_the_repository_is_passed_over(tmp_path: Path) -> None:
    elsewhere = models.publish(tmp_path / "elsewhere", "counter", models.counter())
    path = tmp_path / "models" / "counter" / "1" / "model.onnx"
    path.parent.mkdir(parents=True)
    path.symlink_to(elsewhere)
    assert find_models(tmp_path / "models") == []


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "-flag", "a b", "a\nb", "ä", "x" * 65, "a;b", "$(id)", "%2e%2e", "a\\b", "~"]
)
def test_folders_with_other_names_are_passed_over(tmp_path: Path, name: str) -> None:
    root = tmp_path / "models"
    models.publish(root, "good", models.counter())
    for folder in (root / name / "1", root / "named" / name):
        folder.mkdir(parents=True, exist_ok=True)
        folder.joinpath("model.onnx").write_bytes(b"")
    assert [(file.name, file.version) for file in find_models(root)] == [("good", "1")]


def test_the_digest_is_that_of_the_file_or_of_all_files(tmp_path: Path) -> None:
    path = models.publish(tmp_path, "counter", models.counter())
    (file,) = find_models(tmp_path)
    assert file.digest() == f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"
    path.with_name("model.yaml").write_text("format: 1\n")
    printed = subprocess.run(
        ["sha256sum", "model.onnx", "model.yaml"], cwd=path.parent, capture_output=True, check=True
    ).stdout
    assert file.digest() == f"sha256:{hashlib.sha256(printed).hexdigest()}"
