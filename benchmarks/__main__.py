"""`python -m benchmarks`: measure, and write a table, JSON and plots."""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final

from cyclopts import App, Parameter, validators

from benchmarks import machine, plots, report
from benchmarks.client import ClientProcess
from benchmarks.parts import durability, fairness, messages, options, paced, scale, sequences, steps
from benchmarks.parts.bench import Bench, Part
from benchmarks.runs import Effort, Findings

PARTS: Final[dict[str, Part]] = {
    "limit": steps.ours_and_echo,
    "bulk": messages.bulk,
    "chunks": messages.chunks,
    "telemetry": options.telemetry,
    "workers": options.workers,
    "outputs": options.outputs,
    "fairness": fairness.fairness,
    "paced": paced.paced,
    "scale": scale.scale,
    "durability": durability.durability,
    "openinference": sequences.against_triton,
    "peers": steps.against_peers,
}
app = App(name="benchmarks", help="Measure this project beside its peers.")


@app.default
def main(
    *,
    only: str = "",
    quick: bool = False,
    rounds: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 5,
    seconds: Annotated[float, Parameter(validator=validators.Number(gt=0))] = 0.9,
    results: Path = Path("results"),
) -> None:
    """Measure on this machine, alone on it if the figures are to mean anything.

    Parameters
    ----------
    only
        Parts to measure, with commas: limit, bulk, chunks, telemetry, workers, outputs, fairness, paced, scale,
        durability, openinference, peers. Empty: all.
    quick
        One short round, to see that everything works.
    rounds
        Rounds of each part that compares; medians and ranges are over them.
    seconds
        How long each measurement takes.
    results
        Folder to write into; each run makes a folder of its own there.
    """
    chosen = [name.strip() for name in only.split(",") if name.strip()] or list(PARTS)
    if unknown := [name for name in chosen if name not in PARTS]:
        sys.exit(f"benchmarks: --only knows {', '.join(PARTS)}; not {', '.join(unknown)}")
    effort = Effort(1, min(seconds, 0.5), quick=True) if quick else Effort(rounds, seconds)
    folder = results / datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder.mkdir(parents=True)
    findings, about = Findings(), machine.describe()
    how = (
        f"Client and server on one machine, over loopback. {effort.rounds} rounds, {effort.seconds:g} s or half of "
        "it for each figure; medians, with the lowest and highest in brackets."
    )
    if machine.busy():
        how += " **Other work was running when this began: the figures say little.**"
        print("benchmarks: other work is running on this machine: the figures will say little", file=sys.stderr)
    took: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as models, ClientProcess() as client:
        bench = Bench(Path(models), effort, client, findings)
        for name in chosen:
            began = time.monotonic()
            _run(name, PARTS[name], bench)
            took[name] = (time.monotonic() - began) / 60
            about["load average at the end"] = machine.load_average()
            about["minutes"] = f"{sum(took.values()):.1f} ({', '.join(f'{k} {v:.1f}' for k, v in took.items())})"
            _write(folder, findings, about, how)  # after each part: a run that is broken off keeps what it has
    print((folder / "results.md").read_text())
    print(f"written to {folder}", file=sys.stderr)


def _run(name: str, part: Callable[[Bench], None], bench: Bench) -> None:
    """Run a part; one that fails is reported and the others go on."""
    try:
        part(bench)
    except Exception as error:
        bench.findings.missing(name, "the whole part", f"{type(error).__name__}: {error}")


def _write(folder: Path, findings: Findings, about: dict[str, str], how: str) -> None:
    (folder / "results.md").write_text(report.markdown(findings, about, how))
    (folder / "results.json").write_text(json.dumps({"machine": about, **findings.as_dict()}, indent=1))
    plots.draw(findings, folder)


if __name__ == "__main__":
    app()
