"""The dashboards are what their code says, and draw what the server measures."""

import json
import subprocess
import sys
from pathlib import Path

import yaml

from tests.deploy.promql import (
    DASHBOARDS,
    ROOT,
    check_promql,
    documented_metrics,
    metrics_in,
    panels,
    queries,
)


def test_the_committed_dashboards_are_those_of_the_code(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "deploy.grafana.build", str(tmp_path)], cwd=ROOT, check=True)
    built = {path.name: path.read_text() for path in tmp_path.iterdir()}
    committed = {path.name: path.read_text() for path in DASHBOARDS.iterdir()}
    assert committed == built, "run 'make dashboards' and commit what it writes"


def test_every_panel_says_what_it_means_and_what_to_do() -> None:
    for where, panel in panels():
        means, _, act = str(panel.get("description", "")).partition("\n\n**When it looks bad:** ")
        assert means, f"{where}: does not say what it means"
        assert act, f"{where}: does not say what to do when it looks bad"


def test_panels_draw_documented_metrics_only_and_all_of_them() -> None:
    documented = {metric.name for metric in documented_metrics()}
    drawn = set[str]()
    for where, panel in panels():
        used = metrics_in(str(panel["targets"]))
        assert used, f"{where}: draws no metric"
        assert used <= documented, f"{where}: docs/metrics.md does not know {used - documented}"
        drawn |= used
    assert documented == drawn, f"nobody draws {documented - drawn}"


def test_variables_are_filled_from_documented_metrics() -> None:
    documented = {metric.name for metric in documented_metrics()}
    for path in DASHBOARDS.iterdir():
        assert metrics_in(path.read_text()) <= documented


def test_what_is_traced_is_drawn_and_leads_to_its_trace() -> None:
    """By the label that exemplars have (tests/server/test_tracing.py)."""
    drawn = [panel["title"] for _, panel in panels() if '"exemplar": true' in json.dumps(panel)]
    assert drawn == ["Step latency", "Step latency"]
    provisioned = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    assert [destination["name"] for destination in source["jsonData"]["exemplarTraceIdDestinations"]] == ["trace_id"]


def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    check_promql(queries(), tmp_path)
