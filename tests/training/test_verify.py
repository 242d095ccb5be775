"""Verification lets good models pass, and catches each way in which a model can be bad to serve."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from recurra_training.errors import SignatureError, VerificationError
from recurra_training.export import export_onnx
from recurra_training.models import FeedForward
from recurra_training.verify import TOLERANCE, DifferenceError, verify

from tests.support import models
from tests.training.graphs import GOOD, HEADER, SIGNATURE, write


def test_a_good_graph_passes(tmp_path: Path) -> None:
    checks = verify(write(tmp_path / "good.onnx"))
    assert all(check.difference <= TOLERANCE for check in checks)
    assert {"step by step", "in random chunks", "in one batch", "in random chunks and batches"} < {
        check.name for check in checks
    }


@pytest.mark.parametrize("make", [models.lstm, models.gru, models.rnn, models.feed_forward, models.letters])
def test_models_that_pytorch_did_not_make_pass(tmp_path: Path, make: Any) -> None:
    onnx.save(make(), tmp_path / "model.onnx")
    verify(tmp_path / "model.onnx")


DIFFERENT = {
    "mates' values": (
        """
        mean = ReduceMean (total, zero)
        y = Sub(total, mean)
        s_out = Gather <axis = 1> (total, last)
        """,
        "in one batch",
    ),
    "scale over the whole batch, as in dynamic quantisation": (
        """
        size = Abs(x)
        largest = ReduceMax <keepdims = 0> (size)
        y = Div(total, largest)
        s_out = Gather <axis = 1> (total, last)
        """,
        "beside other mates",
    ),
    "size of the batch": (
        """
        rows = Shape <start = 0, end = 1> (x)
        count = Cast <to = 1> (rows)
        y = Add(total, count)
        s_out = Gather <axis = 1> (total, last)
        """,
        "in one batch",
    ),
    "another row's state": (
        """
        y = Tanh(total)
        ended = Gather <axis = 1> (total, last)
        two = Constant <value_ints = [1000]> ()
        rest = Slice(ended, one, two, zero)
        first = Slice(ended, zero, one, zero)
        s_out = Concat <axis = 0> (rest, first)
        """,
        "in one batch",
    ),
    "the future": (
        """
        all = ReduceSum (x, one)
        y = Add(total, all)
        s_out = Gather <axis = 1> (total, last)
        """,
        "before another future",
    ),
    "length of the chunk": (
        """
        steps = Shape <start = 1, end = 2> (x)
        count = Cast <to = 1> (steps)
        y = Add(total, count)
        s_out = Gather <axis = 1> (total, last)
        """,
        "in random chunks",
    ),
    "a state not handed on": (
        """
        y = Tanh(total)
        s_out = Identity(s_in)
        """,
        "step by step",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_what_a_server_cannot_batch_or_cut_is_refused(tmp_path: Path, what: str) -> None:
    body, caught = DIFFERENT[what]
    with pytest.raises(DifferenceError, match=r"differs by .*1e-05 is allowed") as refused:
        verify(write(tmp_path / "bad.onnx", body))
    assert caught in {check.name for check in refused.value.checks if not check.passed}


def test_a_state_that_is_carried_but_not_used_is_no_fault(tmp_path: Path) -> None:
    verify(write(tmp_path / "idle.onnx", "y = Tanh(x) s_out = Gather <axis = 1> (total, last)"))


def test_a_difference_in_a_state_alone_is_caught(tmp_path: Path) -> None:
    body = """
        y = Tanh(x)
        s_out = ReduceMean <keepdims = 0> (total, one)
    """
    with pytest.raises(DifferenceError, match=r"^s_out "):
        verify(write(tmp_path / "bad.onnx", body))


def test_a_small_difference_is_caught_and_a_tiny_one_allowed(tmp_path: Path) -> None:
    body = """
        steps = Shape <start = 1, end = 2> (x)
        count = Cast <to = 1> (steps)
        little = Constant <value_float = {little}> ()
        more = Mul(count, little)
        bounded = Tanh(total)
        y = Add(bounded, more)
        s_out = Gather <axis = 1> (total, last)
    """
    verify(write(tmp_path / "tiny.onnx", body.format(little="1e-8")))
    with pytest.raises(DifferenceError):
        verify(write(tmp_path / "small.onnx", body.format(little="1e-6")))


def test_what_is_not_finite_is_refused(tmp_path: Path) -> None:
    body = """
        y = Sqrt(total)
        s_out = Gather <axis = 1> (total, last)
    """
    with pytest.raises(DifferenceError, match="y as whole sequences is not finite") as refused:
        verify(write(tmp_path / "bad.onnx", body))
    assert refused.value.checks[0].difference == math.inf


def test_a_graph_that_takes_only_some_lengths_is_refused(tmp_path: Path) -> None:
    body = """
        shape = Constant <value_ints = [-1, 40, 2]> ()
        y = Reshape(total, shape)
        s_out = Gather <axis = 1> (total, last)
    """
    with pytest.raises(VerificationError, match="a call with 1 rows of 1 steps"):
        verify(write(tmp_path / "bad.onnx", body))


def test_a_network_that_is_not_the_one_in_the_file_is_told_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, other = FeedForward(3, 2, hidden=4), FeedForward(3, 2, hidden=4)
    export_onnx(network, tmp_path / "model.onnx")
    assert verify(tmp_path / "model.onnx", network)[-1].name == "in PyTorch"
    with pytest.raises(DifferenceError, match="in PyTorch differs"):
        verify(tmp_path / "model.onnx", other)


def test_real_sequences_are_run_too(tmp_path: Path) -> None:
    path = write(tmp_path / "good.onnx", GOOD.replace("Tanh", "Identity"))
    verify(path)
    with pytest.raises(DifferenceError, match="not finite"):
        verify(path, sequences=[np.full((50, 2), 3e38, np.float32)])


def test_a_model_without_a_time_axis_is_verified_step_by_step(tmp_path: Path) -> None:
    header = """
    <ir_version: 10, opset_import: ["": 20]>
    graph (float[batch, 2] x, float[batch, 2] s_in) => (float[batch, 2] y, float[batch, 2] s_out) {
    """
    signature = copy.deepcopy(SIGNATURE)
    for spec in signature["inputs"] + signature["outputs"]:
        spec["time_axis"] = None
    good = "s_out = Add(x, s_in) y = Tanh(s_out)"
    verify(write(tmp_path / "good.onnx", good, header, signature=signature))
    bad = "s_out = Add(x, s_in) all = CumSum(s_out, axis) y = Tanh(all)"
    header += "axis = Constant <value_int = 0> ()"
    with pytest.raises(DifferenceError):
        verify(write(tmp_path / "bad.onnx", bad, header, signature=signature))


def changed(part: str, **fields: Any) -> dict[str, Any]:
    """The signature with something else in it."""
    signature = copy.deepcopy(SIGNATURE)
    for key, value in fields.items():
        signature[part][0][key] = value
    return signature


WRONG = {
    "missing": (None, "no recurra.signature"),
    "no JSON": ("{", "not valid JSON"),
    "of another format": (SIGNATURE | {"format": 2}, "format 1"),
    "with an unknown field": (SIGNATURE | {"nonsense": 1}, r"signature.nonsense"),
    "without inputs": (SIGNATURE | {"inputs": []}, "at least one input"),
    "another name": (changed("inputs", name="readings"), "inputs are x, s_in; the signature's are readings, s_in"),
    "other dims": (
        changed("inputs", dims=[3], labels=[]),
        r"input x is \[free, free, 2\] in the graph, \[free, free, 3\]",
    ),
    "another dtype": (changed("outputs", dtype="float64"), "output y is float32 in the graph, float64"),
    "no such kind": (changed("outputs", kind="guess"), r"signature.outputs\[0\].kind"),
    "too few labels": (changed("inputs", labels=["a"]), "1 labels for 2 entries"),
    "another batch axis": (changed("states", batch_axis=1), r"\[free, 2\] in the graph, \[2, free\]"),
    "an axis that is not there": (changed("inputs", time_axis=3), "below 3"),
    "no states": (SIGNATURE | {"states": []}, "the signature's are x"),
    "feedback to nowhere": (SIGNATURE | {"feedback": {"output": "y", "input": "z"}}, "feedback must name"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_signature_that_does_not_fit_is_refused(tmp_path: Path, what: str) -> None:
    signature, message = WRONG[what]
    with pytest.raises(SignatureError, match=message):
        verify(write(tmp_path / "bad.onnx", signature=signature))


@pytest.mark.parametrize("axis", ["batch", "time"])
def test_an_axis_that_is_not_free_is_refused(tmp_path: Path, axis: str) -> None:
    with pytest.raises(SignatureError, match="by the signature"):
        verify(write(tmp_path / "bad.onnx", header=HEADER.replace(axis, "4")))


def test_a_graph_that_was_changed_after_its_export_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(FeedForward(3, 2, hidden=4), path)
    model = onnx.load(path)
    weights = onnx.numpy_helper.to_array(model.graph.initializer[0]) + 1
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weights, model.graph.initializer[0].name))
    onnx.save(model, path)
    with pytest.raises(SignatureError, match="graph_digest"):
        verify(path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match="not a file"):
        verify(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("This is a letter, not a model.")
    with pytest.raises(SignatureError, match="not an ONNX file"):
        verify(tmp_path / "text.onnx")
