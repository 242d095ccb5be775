"""Damaged and hostile model files: loaded or refused, and never a crash."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_damaged_model_is_loaded_or_refused(tmp_path: Path, seed: int) -> None:
    command = [sys.executable, "-m", "tests.server.runtimes.hostile_models", str(tmp_path), str(seed), "300"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=240)
    assert ended.returncode == 0, ended.stderr[-2000:]
    outcomes = ast.literal_eval(ended.stdout)
    assert outcomes["refused"] > 100
    assert outcomes["refused"] + outcomes.get("loaded", 0) == 300
