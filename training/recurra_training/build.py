"""Builds the network that a task and the settings ask for."""

from dataclasses import asdict

from recurra_training.data.task import Task
from recurra_training.models import EMBEDDING, FeedForward, Network, NetworkConfig, RecurrentNet
from recurra_training.seq2seq import EncoderDecoder
from recurra_training.settings import Settings


def configure(task: Task, settings: Settings) -> NetworkConfig:
    """What network is asked for."""
    return NetworkConfig(
        cell=settings.cell,
        inputs=task.input.dims[0] if task.input.dims else EMBEDDING,
        outputs=task.output.dims[0],
        tokens=task.tokens,
        values=not task.is_classes,
        source_tokens=task.source_tokens,
        hidden=settings.hidden,
        layers=settings.layers,
        dropout=settings.dropout,
        input_noise=0.0 if task.tokens else settings.input_noise,
        start=settings.start,
        memory_steps=settings.memory_steps,
    )


def build(config: NetworkConfig) -> Network:
    """The network, with random weights from PyTorch's global generator."""
    options = asdict(config)
    if source_tokens := options.pop("source_tokens"):
        return EncoderDecoder(source_tokens=source_tokens, **options)
    if config.cell != "ffnn":
        return RecurrentNet(**options)
    for name in ("cell", "start", "memory_steps"):  # it has no memory to start
        del options[name]
    return FeedForward(**options)
