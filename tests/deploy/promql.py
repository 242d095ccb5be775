"""What the tests read out of docs/metrics.md and the dashboards."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DASHBOARDS = ROOT / "deploy" / "grafana" / "dashboards"
_DOC = (ROOT / "docs" / "metrics.md").read_text()


class DocumentedMetric(NamedTuple):
    """A row of the table in docs/metrics.md."""

    name: str
    kind: str
    query: str


def documented_metrics() -> list[DocumentedMetric]:
    """The rows of the table."""
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| .* \| [^`]*`(.+)` \|$", _DOC, re.MULTILINE)
    # In a table a pipe is written \|.
    return [DocumentedMetric(name, kind, query.replace(r"\|", "|")) for name, kind, query in rows]


def metrics_in(text: str) -> set[str]:
    """The metrics that a text names, a histogram's series by the histogram's own name."""
    names = set(re.findall(r"\b(?:recurra|process|python)_\w+", text))
    histograms = {metric.name for metric in documented_metrics() if metric.kind == "histogram"}
    return {base if (base := re.sub(r"_(bucket|sum|count)$", "", name)) in histograms else name for name in names}


def panels() -> list[tuple[str, dict[str, object]]]:
    """Every panel of every dashboard, but the titles of rows; with where it is."""
    return [
        (f"{path.name}: {panel['title']}", panel)
        for path in sorted(DASHBOARDS.glob("*.json"))
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    ]


def queries() -> list[str]:
    """Every expression of every panel, as Grafana sends it with everything chosen."""
    written = re.findall(r'"expr": (".*")', "\n".join(path.read_text() for path in sorted(DASHBOARDS.glob("*.json"))))
    chosen = {"$__rate_interval": "1m", "$model": ".*", "$version": ".*", "$instance": ".*"}
    return [re.sub(r"\$\w+", lambda name: chosen[name[0]], json.loads(text)) for text in written]


def promtool(*arguments: str, told: str = "") -> str:
    """Fail the test unless Prometheus' own tool is content with what it is told; return what it says."""
    tool = shutil.which("promtool")
    if tool is None:
        pytest.fail("promtool is missing; it comes with Prometheus: apt install prometheus, or brew install prometheus")
    checked = subprocess.run([tool, *arguments], input=told, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    return checked.stdout


def check_promql(expressions: list[str], folder: Path) -> None:
    """Fail the test unless Prometheus' own tool takes every expression."""
    rules = [{"record": f"expression:{number}", "expr": expr} for number, expr in enumerate(expressions)]
    file = folder / "rules.yml"
    # JSON is YAML too.
    file.write_text(json.dumps({"groups": [{"name": "expressions", "rules": rules}]}))
    assert f"{len(expressions)} rules found" in promtool("check", "rules", str(file))
