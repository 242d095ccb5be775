"""The command `recurra models`."""

import json as json_module
from collections.abc import Iterable
from typing import Annotated

from cyclopts import Parameter
from recurra.v1 import models_pb2
from rich.table import Table
from rich.text import Text

from recurra_client.cli.common import (
    DEFAULT_SERVER,
    AsJson,
    Server,
    console,
    print_json,
    seconds,
    shape_text,
    size,
    span,
)
from recurra_client.cli.usererror import UserError


async def models(  # noqa: D417 - the others are described by their types
    name: Annotated[str, Parameter(show_default=False)] = "",
    /,
    *,
    version: str = "",
    load: bool = False,
    unload: bool = False,
    server: Server = DEFAULT_SERVER,
    json: AsJson = False,
) -> None:
    """List the models of a server, or describe one: its inputs, outputs, memory and figures.

    Parameters
    ----------
    name
        The model to describe.
    version
        Its version. Empty: the latest; to unload, all.
    load
        Have the server load it from its model repository first, or anew where its files changed. What cannot be loaded
        changes nothing, and open sessions stay on what they began with.
    unload
        Have no more sessions opened on it; those that are open go on.
    """
    if (load or unload) and (not name or (load and unload)):
        raise UserError("name the model to load, or to unload")
    async with server.client(reconnect=0) as client:
        if unload:
            versions = await client.unload_model(name, version)
            console().print(f"unloaded {name} {', '.join(versions)}")
        elif name:
            model = await (client.load_model if load else client.model)(name, version)
            print_json(model) if json else _describe(model)
        else:
            listed = await client.models()
            print_json(listed) if json else _list(listed)


def _list(models: list[models_pb2.Model]) -> None:
    table = Table(title=None, box=None, header_style="bold", pad_edge=False)
    for column in ("MODEL", "VERSION", "INPUTS", "OUTPUTS", "STATE", "STEP", "DESCRIPTION"):
        table.add_column(column, justify="right" if column in ("STATE", "STEP") else "left", no_wrap=column == "MODEL")
    for model in models:
        table.add_row(
            Text(model.name, "bold cyan"),
            Text.assemble(model.version, (" (latest)" * model.latest, "dim")),
            _tensors(model.inputs),
            _tensors(spec for spec in model.outputs if not spec.optional),
            size(model.state_bytes) if model.states else "none",
            span(seconds(model.step_period)) if model.HasField("step_period") else "",
            model.description,
        )
    console().print(table if models else "no models are loaded")


def _tensors(specs: Iterable[models_pb2.TensorSpec]) -> str:
    return ", ".join(f"{spec.name} {shape_text(spec.dtype, spec.dims)}" for spec in specs)


def _describe(model: models_pb2.Model) -> None:
    out = console()
    latest = " (latest)" * model.latest
    out.print(Text.assemble((model.name, "bold cyan"), " version ", (model.version, "bold"), latest))
    if model.description:
        out.print(model.description)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold")
    table.add_column()
    table.add_row("", "")
    for kind, specs in (("input", model.inputs), ("output", model.outputs)):
        for spec in specs:
            facts = f" {spec.kind}" if spec.kind else ""
            facts += f" behind the last {spec.context}" if spec.context else ""
            facts += " only if asked for by name" * spec.optional
            table.add_row(kind, Text.assemble(_tensors([spec]), (facts, "dim")))
            units = list(spec.units) * (len(spec.labels) if len(spec.units) == 1 else 1)
            for index, label in enumerate(spec.labels):
                unit = f" {units[index]}" if index < len(units) else ""
                table.add_row("", Text.assemble((f"  {index} ", "dim"), label, (unit, "dim")))
    for state in model.states:
        names = f"{state.input_name} -> {state.output_name}"
        shape = shape_text(state.dtype, state.dims)
        start = "from values of its own" if state.initial_differs else f"from {state.initial:g}"
        table.add_row("state", Text.assemble(f"{names} {shape} ", (start, "dim")))
    for constant in model.constants:
        shape = shape_text(constant.dtype, constant.dims)
        whose = "the same for all" if not constant.per_session else "each session's own"
        whose += ", required" * constant.required
        table.add_row("constant", Text.assemble(f"{constant.name} {shape} ", (whose, "dim")))
    kept = f"{size(model.state_bytes)} a session" if model.state_bytes else "none: a feed-forward network"
    table.add_row("memory", kept)
    if model.HasField("step_period"):
        table.add_row("step", f"every {span(seconds(model.step_period))}")
    if model.HasField("feedback"):
        drawn = ", a class drawn from logits" if model.feedback.sampled else ""
        table.add_row("generates", f"{model.feedback.output} -> {model.feedback.input}{drawn}")
    table.add_row("batch", f"up to {model.max_batch_size} sessions in one call")
    for name, value in sorted(model.metrics.items()):
        table.add_row("metric", f"{name} {json_module.dumps(round(value, 6))}")
    table.add_row("digest", model.digest)
    out.print(table)
