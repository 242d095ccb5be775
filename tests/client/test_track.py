"""What the live view is made of."""

import numpy as np
import pytest
from recurra.v1 import models_pb2, tensor_pb2
from recurra_client import StepInfo
from recurra_client.cli.braille import line_plot
from recurra_client.cli.track import Reading, Track
from recurra_client.cli.usererror import UserError
from recurra_client.cli.view import color, color_strip, live_view, parallel_view
from rich.console import Console, RenderableType

FLOAT = tensor_pb2.DATA_TYPE_FLOAT32
INFO = StepInfo(step=1, replayed=False, latency=0.002, queue=0.0001, compute=0.0002, batch_size=1)


def model(kind: str, *labels: str) -> models_pb2.Model:
    output = models_pb2.TensorSpec(name="y", dtype=FLOAT, dims=[len(labels)], kind=kind, labels=labels)
    return models_pb2.Model(name="m", version="1", outputs=[output])


def text_of(renderable: RenderableType) -> str:
    console = Console(width=100, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(renderable)
    return console.export_text()


def test_logits_are_read_as_probabilities() -> None:
    rows = Reading(model("logit", "a", "b")).rows(np.array([[0.0, 1.0986123], [1000.0, 0.0]]), 2)
    np.testing.assert_allclose(rows, np.array([[0.25, 0.75], [1.0, 0.0]]), atol=1e-7)
    same = Reading(model("probability", "a", "b")).rows(np.array([0.4, 0.6]), 1)
    np.testing.assert_allclose(same, np.array([[0.4, 0.6]]))


def test_truth_is_a_label_an_index_or_unknown() -> None:
    reading = Reading(model("logit", "a", "b"))
    assert reading.truth("b") == reading.truth("1") == 1
    assert np.isnan(reading.truth(""))
    for wrong in ("c", "2", "0.5"):
        with pytest.raises(UserError, match="is not one of a, b"):
            reading.truth(wrong)
    assert Reading(model("value", "v")).truth("2.5") == 2.5


def test_accuracy_counts_only_what_is_known() -> None:
    track = Track("t", Reading(model("probability", "a", "b")))
    assert track.score() is None
    track.add(np.array([[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]), [0, 0, np.nan], INFO)
    assert track.score() == 0.5
    assert track.score(2) == 0.0
    assert track.score_text() == "50.0%"
    assert track.predicted_classes().tolist() == [0, 1, 0]
    assert track.true_classes().tolist() == [0, 0, -1]
    assert track.latency(50) == 0.002


def test_a_strip_shows_the_most_frequent_class_of_each_part_and_what_is_to_come() -> None:
    strip = color_strip(np.array([0, 0, 1, 1, 1, 0]), 4, total=12)
    assert strip.plain == "██··"
    assert [str(span.style) for span in strip.spans[:2]] == [color(0), color(1)]
    assert len(color_strip(np.zeros(3, int), 40).plain) == 3


def test_a_line_runs_from_the_lower_left_to_the_upper_right() -> None:
    lines = line_plot([np.linspace(0, 1, 50)], ["red"], width=40, height=6).plain.split("\n")
    assert len(lines) == 6
    inked = [[column for column, cell in enumerate(line[10:]) if 0x2800 < ord(cell) <= 0x28FF] for line in lines]
    assert all(inked)
    assert max(inked[0]) == 29
    assert min(inked[-1]) == 0
    assert lines[0].strip().startswith("1 ┤")
    assert lines[-1].strip().startswith("0 ┤")


def test_gaps_and_constants_are_drawn() -> None:
    assert line_plot([np.array([np.nan, 2.0, np.nan])], ["red"], width=30, height=4).plain
    assert line_plot([], [], width=30, height=4).plain


def test_a_view_can_be_drawn_before_the_first_step() -> None:
    classes, values = model("logit", "a", "b"), model("value", "v", "w")
    for described in (classes, values):
        empty = Track("t", Reading(described), 10)
        assert "step 0 of 10" in text_of(live_view(described, empty, 0, 100))
        assert "2 sessions" in text_of(parallel_view(described, [empty, empty], 0, 100))


def test_the_true_class_is_marked_beside_a_wrong_prediction() -> None:
    described = model("probability", "left", "right")
    track = Track("t", Reading(described), 10)
    track.add(np.array([[0.9, 0.1]]), [1.0], INFO)
    lines = text_of(live_view(described, track, 1, 100)).splitlines()
    assert "90.0%" in next(line for line in lines if "left" in line and "predicted" in line)
    assert "true" in next(line for line in lines if "right" in line)
