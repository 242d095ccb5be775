"""A quiet caller beside one that floods: what it feels of it."""

import hashlib
import json
import secrets
from concurrent.futures import Future
from typing import Any, Final

from benchmarks import contenders
from benchmarks.client import ClientProcess, Values, load
from benchmarks.parts.bench import Bench
from benchmarks.processes import free_port, give_way

FAIRNESS: Final = "fairness"
ALONE: Final = "alone"
_MODEL: Final = "lstm-128"
_QUIET: Final[dict[str, Any]] = {
    "api": "stream", "sessions": 8, "pace": 0.01, "arrivals": 100.0, "warmup": 0.5, "seconds": 1.5,
}  # fmt: skip
_SESSIONS: Final = 64
_NOISY: Final[dict[str, Any]] = {
    "api": "stream", "sessions": _SESSIONS, "seconds": 2.5, "patience": 0.5,  # until the quiet one has gone
}  # fmt: skip
_QUOTA: Final = 2_000
_ROUNDS: Final = 3  # each with a server of its own
_TURNS: Final = 3  # of a round, in each of which it is alone once and beside each of the others


def fairness(bench: Bench) -> None:
    """Alone, beside callers that send ten times what they may, and beside callers that send anew what is answered."""
    tokens = {name: secrets.token_hex(16) for name in ("quiet", "bounded", "flooding")}
    access = bench.models / "access.yaml"
    access.write_text(json.dumps({"tokens": [_entry(name, token) for name, token in tokens.items()]}))
    noises: dict[str, dict[str, Any]] = {
        ALONE: {},
        "beside ten times a bound": {
            "token": tokens["bounded"], "pace": _SESSIONS / (10 * _QUOTA), "arrivals": 1000.0,
        },
        "beside a flood of streams": {"token": tokens["flooding"], "in_flight": 32},
        "beside a flood of calls": {"token": tokens["flooding"], "in_flight": 16, "api": "unary", "connections": 4},
    }  # fmt: skip
    ours = contenders.ours(bench.models, _MODEL, "--access", str(access), "--admit-below", "0")
    turns = 1 if bench.effort.quick else _TURNS
    for count in range(min(bench.effort.rounds, _ROUNDS)):
        port = free_port()
        with ours.running(port) as pid, ClientProcess() as other:
            other.run(give_way)  # it is the server that is to be fair, not this machine
            server = f"127.0.0.1:{port}", pid, _MODEL
            for turn in range(turns * count, turns * (count + 1)):
                for case, noise in noises.items():
                    loud: Future[Values] | None = None
                    if noise:
                        loud = other.begin(load, *server, **(_NOISY | noise))
                    values = bench.client.run(load, *server, **_QUIET, token=tokens["quiet"])
                    if loud is not None:
                        values["others' steps/s"] = loud.result()["steps_per_second"]
                    bench.findings.add(FAIRNESS, "quiet caller", case, turn, values)


def _entry(name: str, token: str) -> dict[str, Any]:
    limits = {"limits": {"steps_per_second": _QUOTA}} if name == "bounded" else {}
    return {"name": name, "roles": ["predict"], "sha256": hashlib.sha256(token.encode()).hexdigest(), **limits}
