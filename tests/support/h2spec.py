"""Runs h2spec, a public suite of HTTP/2 frames, at a server and, beside it, at a bare one of gRPC.

`python -m tests.support.h2spec PATH` names its program (https://github.com/summerwind/h2spec). The suite expects a
server of web pages: gRPC, whose HTTP/2 this is, resets what is no call of its own. So what counts is that the server
lives, and that nothing is worse than in gRPC itself.
"""

import argparse
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from grpc_health.v1 import health_pb2
from rich.console import Console

from benchmarks.processes import free_port, running
from tests.support import models
from tests.support.server import running_server
from tests.support.wire import Stubs

_CALL: Final = "/grpc.health.v1.Health/Check"
_TIMEOUT: Final = "1"  # seconds for each case; most of those that differ wait for it


def play(program: str, port: int, report: Path) -> dict[tuple[str, str], bool]:
    """Run the suite at a port: of each case, whether what came back is what it expects."""
    command = [program, "--port", str(port), "--path", _CALL, "--timeout", _TIMEOUT, "--junit-report", str(report)]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    suites = ET.parse(report).getroot()  # noqa: S314 - written by the program just now
    return {
        (suite.get("package", ""), case.get("classname", "")): not len(case)  # nothing went wrong
        for suite in suites
        for case in suite.iter("testcase")
    }


def main() -> int:
    """The command."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("program")
    program = arguments.parse_args().program
    with tempfile.TemporaryDirectory() as name:
        folder, port = Path(name), free_port()
        models.publish(folder / "models", "counter", models.counter())
        echo = [sys.executable, "-m", "benchmarks.servers.echo", "--port", str(port)]
        with running(echo, port), running_server(folder / "models") as server, ThreadPoolExecutor() as both:
            with Console(stderr=True).status("playing all cases at both servers (four minutes)"):
                ports = (int(server.target.rpartition(":")[2]), port)
                ours, bare = both.map(play, (program,) * 2, ports, (folder / "ours.xml", folder / "bare.xml"))
            Stubs(server.target).health.Check(health_pb2.HealthCheckRequest(), timeout=20)
            calm = "Traceback" not in server.output
    print(
        f"{len(ours)} cases: as the suite expects {sum(ours.values())}, and {sum(bare.values())} of a bare gRPC server"
    )
    for case in sorted(ours.keys() | bare.keys()):
        if ours.get(case) != bare.get(case):
            print(f"differs: {' '.join(case)}: here {ours.get(case)}, there {bare.get(case)}")
    print("no crash, no hang, no trace" if calm else server.output[-3000:])
    return 0 if calm else 1


if __name__ == "__main__":
    sys.exit(main())
