"""Many microphones at once: each call streams a recording in steps of 32 ms, and hears whether somebody speaks."""

import argparse
import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from install import package_file
from recurra_client import Client, RecurraError
from rich.progress import Progress
from sound import CONTEXT, RATE, STEP, Array, draw, read

SECONDS = STEP / RATE
RECORDINGS = Path("/usr/share/pocketsphinx/test/data/librivox")


class Call:
    """One microphone.

    Attributes:
        steps: What it records, `[T, 512]`.
        speech: What the model has answered so far, from 0 to 1.
        late: For each step the seconds from when it was recorded until it was answered.
    """

    def __init__(self, steps: Array) -> None:
        self.steps = steps
        self.speech: list[float] = []
        self.late: list[float] = []

    async def stream(self, client: Client, start: float, *, paced: bool, heard: Callable[[], None]) -> None:
        """Send each step when a microphone would have recorded it, and not before its forerunner was answered."""
        async with client.session("silero-vad") as session:
            for number, step in enumerate(self.steps, 1):
                now = time.perf_counter()
                due = start + number * SECONDS if paced else now
                if due > now:
                    await asyncio.sleep(due - now)
                answer = await session.step(step)
                self.late.append(time.perf_counter() - due)
                self.speech.append(float(answer[0]))
                heard()


async def listen(server: str, recordings: Sequence[Array], count: int, *, paced: bool) -> list[Call]:
    """Stream `count` calls at once, each of the recordings in turn.

    Raises:
        RecurraError: The server cannot be reached, or does not serve the model.
    """
    calls = [Call(steps) for steps in islice(cycle(recordings), count)]
    with Progress(transient=True, disable=not sys.stderr.isatty()) as progress:
        total = progress.add_task(f"{count} calls", total=sum(len(call.steps) for call in calls))
        async with Client(server) as client:
            start = time.perf_counter()
            # People do not breathe in step: the calls begin spread over one step.
            streams = [
                call.stream(client, start + SECONDS * index / count, paced=paced, heard=lambda: progress.advance(total))
                for index, call in enumerate(calls)
            ]
            await asyncio.gather(*streams)
    return calls


def reference(steps: Array) -> Array | None:
    """What the package's own model for whole recordings says, `[T]`; None where silero-vad is not installed."""
    model = package_file("silero_vad", "silero_vad_16k_sequence.onnx")
    if model is None:
        return None
    import onnxruntime  # noqa: PLC0415 - only needed here

    before = np.pad(steps[:-1, -CONTEXT:], ((1, 0), (0, 0)))
    zeros = np.zeros((1, 1, 128), np.float32)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = {"input": np.concatenate([before, steps], axis=1), "h": zeros, "c": zeros}
    answer: Array = session.run(["speech_probs"], feeds)[0]
    return answer


def main() -> None:
    """Stream, say how it went, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recordings", type=Path, nargs="*", help="WAV files: 16 kHz, one channel, 16 bits")
    parser.add_argument("--calls", type=int, default=0, help="how many at once (default: one for each recording)")
    parser.add_argument(
        "--rate", choices=["real", "max"], default="real", help="as people speak, or as fast as it goes"
    )
    parser.add_argument("--server", default="localhost:50051")
    parser.add_argument("--picture", type=Path, default=Path("speech.png"))
    options = parser.parse_args()
    paths = options.recordings or sorted(RECORDINGS.glob("*.wav"))
    if not paths:
        parser.error("name some WAV files, or install some: apt install pocketsphinx-testdata")
    try:
        recordings = [read(path) for path in paths]
        count = options.calls or len(paths)
        calls = asyncio.run(listen(options.server, recordings, count, paced=options.rate == "real"))
    except (OSError, ValueError, RecurraError) as error:
        sys.exit(f"listen.py: {error}")
    heard = [
        (path.name, call.steps, np.array(call.speech, np.float32)) for path, call in zip(paths, calls, strict=False)
    ]
    for name, _, speech in heard:
        print(f"{name}: {len(speech) * SECONDS:.1f} s, speech in {np.mean(speech > 0.5):.0%} of it")
    late = np.concatenate([call.late for call in calls])
    print(
        f"{len(calls)} calls, {len(late)} steps, answered after p50 {np.percentile(late, 50) * 1e3:.2f} ms, "
        f"p99 {np.percentile(late, 99) * 1e3:.2f} ms"
    )
    whole = [reference(steps) for _, steps, _ in heard]
    if all(answer is not None for answer in whole):
        largest = max(float(np.abs(a - b[2]).max()) for a, b in zip(whole, heard, strict=True) if a is not None)
        print(f"largest difference from the package's model for whole recordings: {largest:.1e}")
    draw(heard[:6], options.picture)
    print(f"drawn in {options.picture}")


if __name__ == "__main__":
    main()
