"""Damaged and hostile model files: loaded or refused, and never a crash."""

import ast
import subprocess
import sys
from pathlib import Path

import onnx
import onnx.parser
import pytest
from recurra_server.runtimes.rehearsal import rehearse

from tests.support import models
from tests.support.attacks import Attack
from tests.support.fuzzing import CASES

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_damaged_model_is_loaded_or_refused(tmp_path: Path, seed: int, attack: Attack) -> None:
    command = [sys.executable, "-m", "tests.server.runtimes.hostile_models", str(tmp_path), str(seed), str(CASES)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240 + CASES)
    assert ended.returncode == 0, ended.stderr[-2000:]
    outcomes = ast.literal_eval(ended.stdout)
    print(f"{CASES} damaged models: {outcomes}")
    assert outcomes["refused"] > CASES // 3
    assert outcomes["refused"] + outcomes.get("loaded", 0) == CASES
    attack("model repository", "model files with bytes changed, cut and inserted", "loaded or refused; no crash")


# Few bytes that ask for much: at the start, at the first call, by constant folding, by a size that lies.
BOMBS = {
    "tensor of terabytes": ("y = ConstantOfShape (n)", "int64[1] n = {1099511627776}"),
    "more than there are addresses": ("y = ConstantOfShape (n)", "int64[1] n = {4611686018427387904}"),
    "negative size": ("y = ConstantOfShape (n)", "int64[1] n = {-5}"),
    "sizes that overflow": ("y = ConstantOfShape (n)", "int64[3] n = {4294967296, 4294967296, 4294967296}"),
    "many copies": ("y = Tile (x, n)", "int64[1] n = {1099511627776}"),
    "broadcast": ("y = Expand (x, n)", "int64[2] n = {1099511627776, 1}"),
    "padding": ("y = Pad (x, n)", "int64[2] n = {0, 1099511627776}"),
    "range": ("y = Range (a, b, c)", "float a = {0}, float b = {1e12}, float c = {1}"),
    "empty range that never ends": ("y = Range (a, b, c)", "float a = {0}, float b = {1}, float c = {0}"),
    "one-hot": ("k = Cast <to = 7> (x) y = OneHot (k, n, v)", "int64 n = {1099511627776}, float[2] v = {0, 1}"),
}


async def why_not(*paths: Path) -> list[str]:
    """What the trial before loading makes of models."""
    return [why async for why in rehearse(paths, sessions=4, seconds=20)]


async def test_a_few_bytes_that_ask_for_all_memory_are_refused_and_the_next_model_is_tried(
    tmp_path: Path, attack: Attack
) -> None:
    paths = []
    for name, (body, constants) in BOMBS.items():
        path = tmp_path / name.replace(" ", "-") / "1" / "model.onnx"
        path.parent.mkdir(parents=True)
        text = f'<ir_version: 10, opset_import: ["" : 20]> g (float[B] x) => (float[B] y) <{constants}> {{ {body} }}'
        onnx.save(onnx.parser.parse_model(text), path)
        path.with_name("model.yaml").write_text(
            "format: 1\ninputs: [{name: x, dtype: float32, dims: [], time_axis: null}]\n"
            "outputs: [{name: y, dtype: float32, dims: [], time_axis: null}]\n"
        )
        paths.append(path)
    good = models.publish(tmp_path, "good", models.counter())
    *refused, last = await why_not(*paths, good)
    assert all(refused), dict(zip(BOMBS, refused, strict=True))
    assert all(len(why) <= 600 for why in refused)
    assert last == ""
    attack(
        "model repository",
        "model bombs: few bytes that ask for terabytes, or for a range that never ends",
        "refused; the next model is tried",
    )


async def test_an_initializer_whose_size_lies_is_refused(tmp_path: Path, attack: Attack) -> None:
    paths = []
    for number, dims in enumerate([[2**40], [2**31, 2**31, 2**31], [-1], [0], [2**63 - 1]]):
        model = models.lstm(2, 3)
        model.graph.initializer[0].dims[:] = dims
        paths.append(models.publish(tmp_path, f"lies-{number}", model))
    assert all(await why_not(*paths))
    attack("model repository", "an initializer whose size lies", "refused")
