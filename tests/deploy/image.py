"""What the image does by itself, and with what it is told."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.deploy.promql import ROOT

_RECURRA = Path(sys.executable).with_name("recurra")


def would_start(told: Mapping[str, str], empty: Path) -> bool:
    """Whether a server takes its environment: all that it lacks is a model, of which the folder `empty` has none."""
    _, final = (ROOT / "deploy" / "docker" / "Dockerfile").read_text().rsplit("FROM ", 1)
    own = dict(re.findall(r"(RECURRA_\w+)=(\S+)", final))
    assert own, "the image tells the server where to listen"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RECURRA_")}
    ran = subprocess.run(
        [_RECURRA, "serve", "--models", empty],
        env={**environment, **own, **told},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    return "train one" in ran.stderr
