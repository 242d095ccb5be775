"""`recurra top`: what a real server's metrics say, in the terminal; and one line where there is none."""

import io
import math
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from recurra_client import BlockingSession, StateNotFiniteError, connect
from recurra_client.cli.between import Between
from recurra_client.cli.common import Credentials
from recurra_client.cli.scrape import Sample, Scrape, scrape
from recurra_client.cli.top import view
from recurra_client.cli.usererror import UserError
from recurra_server.telemetry.histograms import SECONDS
from rich.console import Console

from tests.support import models
from tests.support.authority import TOKENS, Authority, Issuer, write_access_file
from tests.support.server import running_server


def top(url: str, *options: str, columns: int = 160, **environ: str) -> "subprocess.CompletedProcess[str]":
    command = [str(Path(sys.executable).with_name("recurra")), "top", "--url", url, *options]
    environment = {**os.environ, "COLUMNS": str(columns), **environ}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)


@contextmanager
def steps_until_the_end(session: BlockingSession) -> Iterator[None]:
    """Step all the time on another thread."""
    over = threading.Event()

    def step() -> None:
        while not over.is_set():
            session.step([1])

    with ThreadPoolExecutor() as pool:
        stepping = pool.submit(step)
        try:
            yield
        finally:
            over.set()
        stepping.result()


@pytest.mark.e2e
def test_it_shows_what_the_server_does(tmp_path: Path) -> None:
    models.publish(tmp_path, "counter", models.counter(), version="3")
    with running_server(tmp_path, "--workers", "2") as server:
        with connect(server.target) as client, client.session("counter") as session:
            for _ in range(3):
                session.step([1])
            shown = top(server.metrics_url, "--every", "0.2")
            with steps_until_the_end(session):
                narrow = top(server.metrics_url, "--every", "0.2", columns=80)
        assert shown.returncode == 0, shown.stderr
    rows = [line.split() for line in shown.stdout.replace("│", " ").splitlines()]
    (counter,) = (row for row in rows if row[:2] == ["counter", "3"])
    assert counter[2:6] == ["1", "0", "0", "0"], "one session, and nobody steps now"
    (busy,) = re.findall(r"counter  3 +1 +([\d,]+) +0 +\d +[\d.]+ ms +[\d.]+ ms ", narrow.stdout)
    assert int(busy.replace(",", "")) > 0
    assert "BATCH" in shown.stdout
    assert "BATCH" not in narrow.stdout
    text = " ".join(shown.stdout.split())
    assert re.search(r"sessions\s+1 of 200,000", text)
    assert re.search(r"workers\s+2", text)
    assert re.search(r"state\s+serving", text)
    assert re.search(r"store\s+none", text)


@pytest.mark.e2e
def test_rates_and_latencies_are_those_of_what_was_done(tmp_path: Path) -> None:
    for name in ("counter", "other"):
        models.publish(tmp_path, name, models.counter(), version="3")
    took: list[float] = []
    with running_server(tmp_path) as server, connect(server.target) as client, ExitStack() as stack:
        before = scrape(server.metrics_url)
        first, *rest, other = (
            stack.enter_context(client.session(name)) for name in ("counter", "counter", "counter", "other")
        )
        together = partial(client.step_batch, "counter", [session.id for session in (first, *rest)], np.ones((3, 1)))
        for call in [partial(first.step, [1])] * 30 + [together] * 10:
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        other.step([3e38])
        with pytest.raises(StateNotFiniteError):
            other.step([3e38])
        between = Between(before, scrape(server.metrics_url))
    shown, seconds = io.StringIO(), between.seconds
    Console(file=shown, width=160).print(view(server.metrics_url, between, 160))
    text = shown.getvalue().replace("│", " ")
    rows = {row[0]: row[2:] for row in map(str.split, text.splitlines()) if row[1:2] == ["3"]}

    assert rows["counter"][:4] == ["3", f"{60 / seconds:,.0f}", "0", "0"]
    assert rows["other"][:4] == ["1", f"{2 / seconds:,.0f}", f"{1 / seconds:,.1f}", "0"]
    assert f"opened {4 / seconds:,.1f}" in text
    p50, p99, queue, compute = (float(rows["counter"][place]) / 1e3 for place in (4, 6, 8, 10))
    # Its callers cannot have waited less; what is shown lies in the bucket of what was observed.
    ceiling = min(bound for bound in (*SECONDS, math.inf) if bound >= max(took))
    assert 0 < p50 <= p99 <= ceiling
    assert 0 < queue <= ceiling
    assert 0 < compute <= ceiling
    assert rows["counter"][-2] == "1.5", "30 batches of one and 10 of three"
    assert float(rows["counter"][-1].rstrip("%")) <= 100 * sum(took) / seconds + 1


@pytest.mark.e2e
def test_it_shows_a_protected_server_to_whoever_may_see_it(tmp_path: Path) -> None:
    authority, access_file, secret = Authority(tmp_path / "tls"), tmp_path / "access.yaml", tmp_path / "token"
    write_access_file(access_file, Issuer(tmp_path / "issuer"))
    secret.write_text(TOKENS["max"] + "\n")
    models.publish(tmp_path / "models", "counter", models.counter())
    ours = authority.client("gateway")
    (tmp_path / "our.pem").write_bytes(ours.chain)
    (tmp_path / "our.key").write_bytes(ours.key)
    mutual = ("--tls-client-cert", str(tmp_path / "our.pem"), "--tls-client-key", str(tmp_path / "our.key"))
    trust = ("--tls-ca", str(authority.ca))
    flags = (*authority.flags(), "--tls-client-ca", str(authority.ca), "--access", str(access_file))
    with running_server(tmp_path / "models", *flags) as server:
        url = server.metrics_url
        assert url.startswith("https://")
        shown = top(url, "--every", "0.1", *trust, *mutual, "--token-file", str(secret))
        assert "counter" in shown.stdout, shown.stderr
        shown = top(url, "--every", "0.1", *trust, *mutual, RECURRA_TOKEN=TOKENS["max"])
        assert "counter" in shown.stdout, shown.stderr
        for options, said in (
            ((*trust, *mutual), "needs a token with the role metrics"),
            ((*trust, *mutual, "--token", TOKENS["alice"]), "needs a token with the role metrics"),
            ((*trust, "--token", TOKENS["max"]), "cannot get metrics from .*it may want a certificate"),
            ((*mutual, "--token", TOKENS["max"]), "cannot get metrics from .*certificate verify failed"),
            (("--tls-ca", str(tmp_path / "no.pem")), r"no\.pem: No such file or directory"),
            (("--tls-ca", str(secret)), "cannot use .*token: for TLS they must be PEM files"),
        ):
            refused = top(url, *options)
            assert refused.returncode == 1
            assert re.fullmatch(f"recurra: .*{said}.*\n", refused.stderr), refused.stderr


@pytest.mark.parametrize(("host", "sent"), [("127.0.0.1", True), ("localhost", True), ("another.test", False)])
def test_a_token_is_sent_unencrypted_to_this_machine_only(
    host: str, sent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[urllib.request.Request] = []

    def answer(request: urllib.request.Request, **_: object) -> None:
        asked.append(request)
        raise urllib.error.URLError("nobody is there")

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    with pytest.raises(UserError, match="nobody is there"):
        scrape(f"http://{host}:9464/metrics", Credentials(token=TOKENS["max"]))
    assert asked[0].has_header("Authorization") == sent


def test_a_token_does_not_follow_to_where_a_server_sends_us() -> None:
    shown: list[str | None] = []

    class Redirecting(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            shown.append(self.headers["Authorization"])
            self.send_response(302)
            port = self.headers["Host"].rpartition(":")[2]
            self.send_header("Location", f"http://localhost:{port}{self.path}x")
            self.end_headers()

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(UserError, match="it answers 302"):
            scrape(f"http://127.0.0.1:{server.server_port}/metrics", Credentials(token=TOKENS["max"]))
        server.shutdown()
    assert shown[0] == f"Bearer {TOKENS['max']}"
    assert shown[1:]
    assert not any(shown[1:])


def test_what_a_server_says_is_shown_and_not_obeyed() -> None:
    answers = iter((1, 2, None))

    class Hostile(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count = next(answers)
            self.send_response(200 if count else 500, "\x1b[31mno")
            self.end_headers()
            self.wfile.write(
                'recurra_build_info{version="\x1b[31m1"} 1\n'
                'recurra_sessions{model="[red]a[/red]\x1b[2J",version="[3]"} 1\n'
                f'recurra_errors_total{{reason="[bold]\x1b]0;b\x07"}} {count}\n'.encode()
            )

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hostile) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/metrics"
        shown, failed = top(url, "--every", "0.1"), top(url)
        server.shutdown()
    assert shown.returncode == 0, shown.stderr
    for text in ("[31m1", "[red]a[/red][2J", "[3]", "[bold]]0;b"):
        assert text in shown.stdout
    assert failed.stderr.endswith("it answers 500 [31mno\n")
    assert not {"\x1b", "\x07"} & {*shown.stdout, *failed.stderr}


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:{port}/metrics", "cannot get metrics from .*: Connection refused"),
        ("localhost:9464", "is no URL of metrics, such as http://localhost:9464/metrics"),
    ],
)
def test_without_a_server_it_says_so_in_one_line(url: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shown = top(url.format(port=port))
    assert shown.returncode == 1
    assert shown.stdout == ""
    assert re.fullmatch(rf"recurra: .*{said}\n", shown.stderr)


def test_a_quantile_is_in_the_bucket_of_what_was_observed() -> None:
    observed = np.random.default_rng(0).exponential(0.01, 5000)
    bounds = (0.001, 0.005, 0.01, 0.02, 0.05, 0.1, math.inf)

    def scrape_after(at: float, values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> Scrape:
        counts = [Sample({"le": str(bound), "model": "m"}, float((values <= bound).sum())) for bound in bounds]
        return Scrape(at, {"seconds_bucket": counts})

    between = Between(scrape_after(0, observed[:2000]), scrape_after(10, observed))
    for share in (0.5, 0.95, 0.99):
        right = float(np.quantile(observed[2000:], share, method="inverted_cdf"))
        assert np.digitize(between.quantile(share, "seconds"), bounds) == np.digitize(right, bounds)
    assert math.isnan(between.quantile(0.5, "seconds", lambda labels: labels["model"] == "another"))


def test_a_server_that_was_started_anew_does_not_count_backwards() -> None:
    before, now = (Scrape(at, {"steps_total": [Sample({}, value)]}) for at, value in ((0.0, 1000.0), (2.0, 10.0)))
    assert Between(before, now).rate("steps_total") == 5
