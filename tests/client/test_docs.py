"""What docs/client.md shows is what is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import recurra_client

from tests.client.conftest import SENSORS
from tests.support.server import ServerProcess

DOCUMENT = (Path(__file__).parents[2] / "docs" / "client.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=["asyncio", "blocking", "raw stubs"])
def test_the_examples_run(server: ServerProcess, example: str) -> None:
    code = re.sub(r"\b6\b", str(len(SENSORS)), example.replace("localhost:50051", server.target))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout


def test_every_error_is_listed() -> None:
    listed = set(re.findall(r"`(\w+Error)`", DOCUMENT.split("## The errors to handle")[1]))
    exported = {name for name in recurra_client.__all__ if name.endswith("Error")}
    assert listed - {"ValueError", "ConnectionError", "TimeoutError"} == exported
