"""What README.md shows of both APIs is what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.venvs import environment
from tests.openinference.test_clients import TRITONCLIENT
from tests.support.server import ServerProcess

_README = (Path(__file__).parents[2] / "README.md").read_text()
_SECTION = _README.split("### From clients that speak the Open Inference Protocol")[1].split("###")[0]
_BEFORE = "import numpy as np; recording = np.random.default_rng(0).standard_normal((9, 6))\n"


@pytest.mark.e2e
def test_a_sequence_is_the_same_through_either_api(server: ServerProcess) -> None:
    ours, theirs = re.findall(r"^```python\n(.*?)^```", _SECTION, re.MULTILINE | re.DOTALL)
    answers = []
    for python, code in (
        (sys.executable, ours),
        (environment("tritonclient", (TRITONCLIENT,)) / "python", theirs),
    ):
        whole = _BEFORE + code.replace("localhost:50051", server.target) + "print(y.tolist())"
        ended = subprocess.run([str(python), "-c", whole], capture_output=True, text=True, check=False, timeout=60)
        assert (ended.returncode, ended.stderr) == (0, "")
        answers.append(ended.stdout)
    assert answers[0] == answers[1] != ""
