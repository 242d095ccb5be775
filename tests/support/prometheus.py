"""A real Prometheus for tests: it scrapes real servers, and answers what Grafana would ask it."""

import datetime
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Labels = dict[str, str]


class Prometheus:
    """A running one.

    Attributes:
        url: Where it answers.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def ask(self, path: str, **parameters: Any) -> Any:
        """What its API answers."""
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:  # noqa: S310
            return json.load(answer)["data"]

    def query(self, expr: str, at: float | None = None) -> list[tuple[Labels, float]]:
        """The series of an expression at a time, in seconds since 1970."""
        found = self.ask("query", query=expr, **({} if at is None else {"time": at}))["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def active_alerts(self) -> set[str]:
        """The names of the alerts that fire, or will if it goes on like this."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"]}

    def wait_until(self, expr: str, seconds: float = 60.0) -> float:
        """Wait until an expression has a series; returns when it had."""
        patience = time.monotonic() + seconds
        while time.monotonic() < patience:
            now = time.time()
            if self.query(expr, now):
                return now
            time.sleep(0.1)
        pytest.fail(f"Prometheus does not come to: {expr}")

    def settle(self) -> float:
        """Wait until what is counted now has been scraped from all targets, and the rules were evaluated over it.

        Returns:
            A time when that was what it had: seconds since 1970.
        """
        scraped = self._newer("recurra_workers", time.time())
        for _ in range(2):  # alerts look at what other groups of rules have recorded
            self._evaluated(time.time())
        return scraped

    def _evaluated(self, than: float) -> None:
        """Wait until all groups of rules have been evaluated since this time."""
        patience = time.monotonic() + 60
        while time.monotonic() < patience:
            told = [datetime.datetime.fromisoformat(group["lastEvaluation"]) for group in self.ask("rules")["groups"]]
            if min(told).timestamp() > than:
                return
            time.sleep(0.05)
        pytest.fail("Prometheus does not evaluate its rules")

    def _newer(self, series: str, than: float) -> float:
        """Wait until all series have a sample newer than this; returns the time of the newest."""
        patience = time.monotonic() + 60
        expected = len(self.ask("series", **{"match[]": series}))
        while time.monotonic() < patience:
            # A scrape that failed leaves a target without any.
            times = [value for _, value in self.query(f"timestamp({series})")]
            if len(times) == expected and min(times) > than:
                return max(times)
            time.sleep(0.05)
        pytest.fail(f"Prometheus gets no more of {series}")


@contextmanager
def running_prometheus(folder: Path, rules: Path, targets: list[str], every: float = 0.5) -> Iterator[Prometheus]:
    """A Prometheus for the length of a `with` block, once it has scraped all targets."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.fail("prometheus is missing: apt install prometheus, or brew install prometheus")
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "global": {"scrape_interval": f"{every * 1e3:.0f}ms", "evaluation_interval": f"{every * 1e3:.0f}ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "recurra", "static_configs": [{"targets": targets}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
            ],
            stdout=log,
            stderr=log,
        )
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        patience = time.monotonic() + 60
        while time.monotonic() < patience and process.poll() is None:
            try:
                prometheus.ask("targets")
                break
            except (urllib.error.URLError, ConnectionError):
                time.sleep(0.1)
        else:
            pytest.fail((folder / "log").read_text())
        prometheus.wait_until(f"count(up == 1) == {len(targets)}")
        yield prometheus
    finally:
        process.terminate()
        process.wait(30)
