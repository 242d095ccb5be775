"""`recurra verify`, the part of the server: that any model which it could serve answers alike however steps come."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from recurra_verification import TOLERANCE, Check, allowing, compare, table, wrong
from rich.console import Console

from recurra_server.engine.errors import one_line
from recurra_server.engine.signature import Signature
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.runtimes.player import RuntimePlayer
from recurra_server.runtimes.rehearsal import rehearse

_SESSIONS = 8
_SECONDS = 600.0
_ADVICE = {
    "values": "its outputs or states become NaN or infinite on random numbers",
    "steps": "its states do not carry all that it remembers, one is missing or they are paired wrongly; or, with "
    "dynamic quantisation, a step depends on those beside it: send single steps",
    "company": "a session's answers depend on who shares its call, as dynamic quantisation makes them: set "
    "`batching: off` in model.yaml",
    "future": "it looks ahead: a step's answer depends on later ones, which a stream does not know",
    "outputs": "where nobody asks for its optional outputs it answers otherwise: do not declare them `optional`",
}


class VerificationError(Exception):
    """A model does not verify.

    Attributes:
        message: Which, and why, in a line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def verify(model: Path, *, tolerance: float = TOLERANCE, operators: Sequence[Path] = ()) -> None:
    """Verify a model file, or all below a folder, and show what was compared.

    They may use the operators of the libraries `operators`.

    Raises:
        VerificationError: One cannot be used, or answers differently; the message says what to do.
    """
    out = Console(highlight=False, soft_wrap=True)
    paths = find(model)
    with out.status("Trying ..."):
        verdicts = asyncio.run(_rehearse(paths, operators))
    failed = []
    for path, refused in zip(paths, verdicts, strict=True):
        if len(paths) > 1:
            out.print(f"\n{path}", markup=False)
        with out.status("Verifying ..."):
            why, checks = (refused, []) if refused else _verify(path, tolerance, operators)
        if checks:
            out.print()
            out.print(table(checks))
        if why:
            failed.append((path, why))
            if len(paths) > 1:
                out.print(why, markup=False)
    if failed:
        many = f"{len(failed)} of {len(paths)} models do not verify; the first is " if len(paths) > 1 else ""
        raise VerificationError(f"{many}{failed[0][0]}: {failed[0][1]}")


def find(model: Path) -> list[Path]:
    """The model files that a path means: a file, or all below a version's folder, a model's, or a repository.

    Raises:
        VerificationError: There is none.
    """
    paths = sorted(model.rglob("model.onnx")) if model.is_dir() else [model] if model.is_file() else []
    if not paths:
        what = "there is no model.onnx below it" if model.is_dir() else f"{model} is not a file"
        raise VerificationError(f"{model}: {what}; give a model.onnx, or a folder with some")
    return paths


def checks_of(runtime: OnnxRuntime, tolerance: float = TOLERANCE) -> list[Check]:
    """Run a model in all the ways that the server may.

    Raises:
        Exception: It refuses the numbers, or answers in a shape of its own.
    """
    signature, rng = runtime.signature, np.random.default_rng(0)
    seed = int(rng.integers(2**32))
    in_part = any(spec.optional for spec in signature.outputs)
    checks, _, _ = compare(
        RuntimePlayer(runtime, seed),
        signature.inputs,
        rng,
        chunks=signature.has_time and not runtime.fixed_steps,
        batches=not runtime.one_by_one,
        without_optional=RuntimePlayer(runtime, seed, in_full=False) if in_part else None,
    )
    return allowing(checks, max(tolerance, _rounding(signature)))


def advice(checks: list[Check]) -> list[str]:
    """What is wrong with a model, a sentence for each kind, and what to do about it."""
    failed = [check for check in checks if not check.passed]
    if failed and not checks[0].passed:
        failed = failed[:1]  # the others follow from it
    if any(check.about == "steps" for check in failed):  # these are also cut
        also = ("in random chunks and batches", "without optional outputs")
        failed = [check for check in failed if check.name not in also]
    worst = {about: wrong([check for check in failed if check.about == about]) for about in _ADVICE}
    return [f"{check}: {_ADVICE[about]}" for about, check in worst.items() if check is not None]


def _verify(path: Path, tolerance: float, operators: Sequence[Path]) -> tuple[str, list[Check]]:
    """Why a model does not verify, empty where it does, and what was compared."""
    try:
        checks = checks_of(OnnxRuntime(path, operators=operators), tolerance)
    except Exception as error:
        return f"it could not be run on random numbers: {one_line(error)}", []
    return "; ".join(advice(checks)), checks


async def _rehearse(paths: list[Path], operators: Sequence[Path]) -> list[str]:
    return [why async for why in rehearse(paths, sessions=_SESSIONS, seconds=_SECONDS, operators=operators)]


def _rounding(signature: Signature) -> float:
    """A few units in the last place of the coarsest float there is: half precision cannot be as exact as others."""
    specs = (*signature.inputs, *signature.outputs, *signature.states)
    return max((4 * float(np.finfo(spec.np_dtype).eps) for spec in specs if spec.np_dtype.kind == "f"), default=0.0)
