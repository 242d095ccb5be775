"""What a network makes of its own: names, dates."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from torch import nn

from recurra_training.data.recording import Recording
from recurra_training.data.task import Task
from recurra_training.describe import HasStates
from recurra_training.seq2seq import EncoderDecoder

_LONGEST: Final = 24
_EACH: Final = 12


def samples(task: Task, network: nn.Module, recordings: Sequence[Recording]) -> dict[str, list[str]]:
    """Lines of what the network writes, under what it was asked for; empty for a network that writes nothing."""
    if isinstance(network, EncoderDecoder):
        return {"What is read, and what is written:": _transcripts(task, network, recordings[:_EACH])}
    if task.feedback is None or not task.tokens:
        return {}
    rng = np.random.default_rng(0)
    kinds = [index for index, token in enumerate(task.input.labels) if token.startswith("<")]
    return {
        f"{task.input.labels[kind]} and then, at temperature 0.7 and seed 0:": [
            ", ".join(generate(task, network, [kind], rng, temperature=0.7) for _ in range(_EACH))
        ]
        for kind in kinds
    }


@torch.no_grad()
def generate(
    task: Task, network: nn.Module, tokens: Sequence[int], rng: np.random.Generator, *, temperature: float
) -> str:
    """Feed tokens, then what is drawn from the answers, until token 0, the end, is drawn."""
    network.eval()
    states = network
    assert isinstance(states, HasStates)  # noqa: S101  # every network here has them
    written: list[str] = []
    x, after = torch.tensor([list(tokens)]), states.initial_states(1)
    while len(written) < _LONGEST:
        y, *after = network(x, *after)
        scores = y[0, -1].double().numpy() / temperature
        drawn = int((scores + rng.gumbel(size=len(scores))).argmax())
        if drawn == 0:
            break
        written.append(task.output.labels[drawn])
        x = torch.tensor([[drawn]])
    return "".join(written)


@torch.no_grad()
def _transcripts(task: Task, network: EncoderDecoder, recordings: Sequence[Recording]) -> list[str]:
    network.eval()
    lines = []
    labels = task.output.labels
    for recording in recordings:
        read = recording.x[recording.x < network.source_tokens]
        _, state = network.encoder(torch.from_numpy(read)[None], *network.encoder.initial_states(1))
        drawn = len(labels) - 1
        written: list[str] = []
        while len(written) < _LONGEST:
            y, state = network.decoder(torch.tensor([[drawn]]), state)
            drawn = int(y[0, -1].argmax())
            if labels[drawn] == "<end>":
                break
            written.append(labels[drawn])
        text = "".join(task.input.labels[token].removeprefix("read ") for token in read)
        lines.append(f"{text:28} {''.join(written)}")
    return lines
