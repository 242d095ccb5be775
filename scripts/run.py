"""`make run`: trains the tour's model if there is none, serves it, and streams held-out recordings through it.

The server then runs on until Ctrl-C, which drains it. Exits with the status of the part that ended the run: 0 after
an orderly drain, 130 if interrupted before.
"""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

MODEL = "watch"
MODELS = Path("models")
HELD_OUT = Path("runs", MODEL, "held_out")
RECORDINGS = 3
# Five times as fast as they were recorded: slow enough to watch.
STEPS_A_SECOND = 50
RECURRA = Path(sys.executable).with_name("recurra")


def main() -> int:
    """Run the tour and return its exit status."""
    # Set even where a shell has it ignored, as for a job in the background: the children inherit that.
    signal.signal(signal.SIGINT, _interrupt)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _interrupt)
    try:
        return tour()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def tour() -> int:
    """Train, serve, stream, and serve on until interrupted."""
    if not any(MODELS.glob(f"{MODEL}/*/model.onnx")):
        say(f"There is no model in {MODELS}/{MODEL} yet: training one.")
        if status := run("train", MODEL, "--resume"):
            return status

    say("Starting the server.")
    with child("serve", "--models", str(MODELS), end=signal.SIGTERM, stdout=subprocess.PIPE) as server:
        address = listening_address(server)
        if address is None:  # it has said why
            return server.wait()

        recordings = sorted(str(path) for path in HELD_OUT.glob("*.csv"))
        # Spread over the folder: of several people and exercises.
        recordings = recordings[:: max(1, len(recordings) // RECORDINGS)][:RECORDINGS]
        if recordings:
            say("Streaming recordings of people whom the model has never seen, step by step, from another process.")
            options = ("--truth", "label", "--rate", str(STEPS_A_SECOND), "--server", address)
            if status := run("stream", MODEL, *recordings, *options):
                return status
        else:
            say(f"There are no recordings in {HELD_OUT}, so nothing is streamed.")

        say("The server runs on. Ctrl-C drains and ends it.")
        with suppress(KeyboardInterrupt):
            return server.wait()
    return server.returncode


def run(*arguments: str) -> int:
    """Run a command to its end and return its exit status."""
    with child(*arguments) as process:
        return process.wait()


@contextmanager
def child(
    *arguments: str, end: signal.Signals = signal.SIGINT, stdout: int | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A `recurra` process that does not outlive the `with` block.

    It has a session of its own: a Ctrl-C reaches this script only, which ends its children one after the other.
    """
    process = subprocess.Popen([RECURRA, *arguments], stdout=stdout, text=True, start_new_session=True)  # noqa: S603
    # Asked to end in order; asked again, which hurries a drain; made to.
    requests = iter((end, end, signal.SIGKILL))
    try:
        yield process
    finally:
        while process.poll() is None:
            with suppress(KeyboardInterrupt, ProcessLookupError):
                os.killpg(process.pid, next(requests, signal.SIGKILL))
                process.wait()


def listening_address(server: subprocess.Popen[str]) -> str | None:
    """Wait until the server listens, showing what it prints; None if it has ended instead."""
    assert server.stdout is not None  # noqa: S101
    address = None
    for line in server.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"gRPC on (\S+)", line):
            address = found[1]
        if line.startswith("metrics on "):
            return address
    return None


def say(text: str) -> None:
    """Tell what happens next."""
    print(f"\n=== {text}", flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
