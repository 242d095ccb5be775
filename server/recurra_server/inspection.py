"""The command `recurra inspect`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter
from onnxruntime import InferenceSession
from rich.console import Console
from rich.table import Table

from recurra_server.engine.errors import one_line
from recurra_server.engine.signature import SignatureError
from recurra_server.runtimes.guess import Axis, Guess, Node, guess
from recurra_server.runtimes.metadata import DESCRIPTION, SIGNATURE_KEY, read_description
from recurra_server.runtimes.onnx import TYPES, OnnxRuntime, open_session
from recurra_server.runtimes.probe import probe
from recurra_server.verification import advice, checks_of

_TRIED_BATCH = 4


def inspect(
    model: Annotated[Path, Parameter(show_default=False)],
    /,
    *,
    operators: Annotated[tuple[Path, ...], Parameter(negative=())] = (),
) -> None:
    """Show what an ONNX file takes, answers and remembers, as far as it can be told, and try it.

    A model.yaml to start from goes to stdout, all else to stderr: recurra inspect model.onnx > model.yaml. With a
    model.yaml beside it, or a signature inside, it says whether the server would load the model, and why not.

    Parameters
    ----------
    model
        The file.
    operators
        Shared libraries of custom operators that it may use.
    """
    out = Console(stderr=True, highlight=False)
    try:
        session = open_session(model, operators=operators)
    except Exception as error:
        print(f"recurra: {model}: {one_line(error)}", file=sys.stderr)
        raise SystemExit(1) from None
    out.print(_graph(session))
    try:
        described = read_description(model)
    except SignatureError as error:
        _refuse(out, error)
    if described is None and SIGNATURE_KEY not in session.get_modelmeta().custom_metadata_map:
        _guess(out, model, session, operators)
        return
    try:
        runtime = OnnxRuntime(model, operators=operators)
        probe(runtime, _TRIED_BATCH)
    except SignatureError as error:
        _refuse(out, error)
    where = DESCRIPTION if described is not None else "its metadata"
    out.print(f"[green]It loads[/], as {where} says; {_how(runtime)}.")
    doubts = _doubts(runtime)
    if not doubts:
        out.print("[green]Verified[/]: it answers alike in all the ways in which it may be called.")
    for doubt in doubts:
        out.print("[yellow]![/]", end=" ")
        out.print(doubt, markup=False)


def _guess(out: Console, model: Path, session: InferenceSession, operators: Sequence[Path]) -> None:
    inputs, outputs = _nodes(session.get_inputs()), _nodes(session.get_outputs())
    if strange := [node for node in (*inputs, *outputs) if node.dtype not in TYPES.values()]:
        _refuse(out, SignatureError(f"{strange[0].name} is a {strange[0].dtype}: only tensors of numbers are served"))
    guessed = guess(inputs, outputs)
    for state in guessed.fields["states"]:
        out.print(f"state  {state['output_name']} -> {state['input_name']}, dims {state['dims']}, "
                  f"batch axis {state['batch_axis']}", markup=False)  # fmt: skip
    if guessed.complete:
        try:
            runtime = OnnxRuntime(model, description=guessed.fields, operators=operators)
            probe(runtime, _TRIED_BATCH)
            guessed.doubts += _doubts(runtime)
            out.print(f"[green]Tried[/]: {_how(runtime)}.")
        except SignatureError as error:
            guessed.doubts.append(f"it was tried and does not run so: {error}")
    for doubt in guessed.doubts:
        out.print("[yellow]?[/]", end=" ")
        out.print(doubt, markup=False)
    sys.stdout.write(as_yaml(guessed))


def as_yaml(guessed: Guess) -> str:
    """A model.yaml, its doubts as comments."""
    lines = [f"# Check: {doubt}." for doubt in guessed.doubts]
    for key, value in guessed.fields.items():
        if isinstance(value, list):
            lines.append(f"{key}:" if value else f"{key}: []")
            lines += [f"  - {_flow(item)}" for item in value]
        else:
            lines.append(yaml.safe_dump({key: value}, allow_unicode=True).strip())
    return "\n".join(lines) + "\n"


def _flow(item: dict[str, Any]) -> str:
    return yaml.safe_dump(item, default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True).strip()


def _doubts(runtime: OnnxRuntime) -> list[str]:
    """What verification finds."""
    try:
        return advice(checks_of(runtime))
    except Exception as error:
        return [f"it could not be tried on random numbers: {one_line(error)}"]


def _how(runtime: OnnxRuntime) -> str:
    signature = runtime.signature
    alone = runtime.one_by_one
    steps = "one step at a time" if runtime.fixed_steps or not signature.has_time else "several steps at once"
    calls = "sessions run one by one" if alone else "sessions share calls"
    return f"{calls}, {steps}, {signature.state_bytes} bytes of state each"


def _graph(session: InferenceSession) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for what, nodes in (("input", session.get_inputs()), ("output", session.get_outputs())):
        for node in _nodes(nodes):
            table.add_row(what, node.name, node.dtype, rf"\[{node.sizes}]")
    return table


def _nodes(nodes: list[Any]) -> list[Node]:
    return [
        Node(node.name, TYPES.get(node.type, node.type), tuple(_axis(axis) for axis in node.shape)) for node in nodes
    ]


def _axis(axis: object) -> Axis:
    return axis if isinstance(axis, int) else str(axis) if axis else None


def _refuse(out: Console, error: SignatureError) -> None:
    out.print("[red]It would not be loaded[/]:", end=" ")
    out.print(str(error), markup=False)
    raise SystemExit(1)
