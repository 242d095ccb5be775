"""How gradients travel, and the lessons as a whole."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from recurra_training.build import build
from recurra_training.experiment import Experiment, Figure
from recurra_training.initialise import remember, start_from
from recurra_training.lessons.__main__ import lessons
from recurra_training.lessons.plan import CURES, LESSONS, Claim
from recurra_training.lessons.results import judge
from recurra_training.lessons.table import BEGIN, END, write_into
from recurra_training.models import NetworkConfig, RecurrentNet
from recurra_training.report.page import Page
from recurra_training.studies import exploding
from recurra_training.studies.gradients import gradient_by_lag
from torch import nn

from tests.training.toy import toy_task


def test_the_gradient_by_lag_is_that_of_autograd() -> None:
    torch.manual_seed(0)
    network = RecurrentNet(2, 1, cell="gru", hidden=4)
    x = torch.randn(3, 6, 2)
    norms = gradient_by_lag(network, x)
    x.requires_grad_()
    y = network(x)[0][:, -1]
    (expected,) = torch.autograd.grad(y.sum(), x)
    np.testing.assert_allclose(norms, expected.norm(dim=-1).mean(0).flip(0).numpy(), rtol=1e-5)


def test_gradients_vanish_in_a_plain_network_and_last_in_a_gated_one() -> None:
    x = torch.randn(16, 100, 4, generator=torch.Generator().manual_seed(0))
    far = {}
    for cell in ("rnn", "lstm", "ffnn"):
        torch.manual_seed(0)
        config = NetworkConfig(cell, inputs=4, outputs=2, memory_steps=100)
        norms = gradient_by_lag(build(config), x)
        far[cell] = norms[-1] / norms[0]
    assert far["rnn"] < 1e-8
    assert far["lstm"] > 1e-2
    assert far["ffnn"] == 0


def test_a_training_explodes_and_clipping_holds_it() -> None:
    free, by_norm, by_value = exploding.courses(60)
    assert not math.isfinite(free.losses[-1]) or max(free.losses) > 1e3
    for clipped in (by_norm, by_value):
        assert len(clipped.losses) == 60
        assert clipped.losses[-1] < 1


def test_recurrent_weights_start_as_asked_for() -> None:
    gru = nn.GRU(3, 5, num_layers=2)
    start_from(gru, "orthogonal")
    for layer in range(2):
        for block in torch.split(getattr(gru, f"weight_hh_l{layer}"), 5):
            torch.testing.assert_close(block @ block.T, torch.eye(5))
    rnn = nn.RNN(3, 5)
    start_from(rnn, "identity")
    weights = dict(rnn.named_parameters())
    assert torch.equal(weights["weight_hh_l0"], torch.eye(5))
    assert not weights["bias_hh_l0"].any()


def test_gates_begin_by_remembering_for_as_long_as_asked() -> None:
    torch.manual_seed(0)
    lstm = nn.LSTM(3, 1000)
    remember(lstm, 100)
    i, f, *_ = torch.split(dict(lstm.named_parameters())["bias_ih_l0"], 1000)
    torch.testing.assert_close(i, -f)
    spans = f.exp() + 1  # 1 / (1 - sigmoid(f))
    assert spans.min() > 1.9
    assert spans.max() < 101
    assert 40 < spans.mean() < 60, "evenly over all spans"


def test_claims_are_held_against_every_seed() -> None:
    experiment = Experiment(toy_task(), {})
    figures = [Figure("lstm", (0.9, 0.8, 0.7)), Figure("rnn", (0.5, 0.6, 0.75)), Figure("ffnn", (0.1, 0.1, 0.1))]
    assert str(judge(Claim("lstm", "rnn"), experiment, figures)) == "holds in part (2 of 3 seeds)"
    assert str(judge(Claim("lstm", "ffnn"), experiment, figures)) == "holds (3 of 3 seeds)"
    assert str(judge(Claim("ffnn", "rnn"), experiment, figures)) == "DOES NOT HOLD (0 of 3 seeds)"
    assert str(judge(Claim("lstm", limit=0.75), experiment, figures)) == "holds in part (2 of 3 seeds)"


def test_all_lessons_run_and_say_what_came_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = tmp_path / "learning.md"
    document.write_text(f"# Before\n{BEGIN}\nOUTDATED\n{END}\nAfter\n", encoding="utf-8")
    lessons(runs=tmp_path / "runs", document=document, smoke=True)
    text = document.read_text(encoding="utf-8")
    assert text.startswith("# Before\n")
    assert text.endswith("After\n")
    assert "OUTDATED" not in text
    page = (tmp_path / "runs" / "index.html").read_text(encoding="utf-8")
    for lesson in LESSONS:
        assert lesson.idea in text
        assert lesson.idea in page
    assert all(cure.name in text for cure in CURES)
    run = json.loads(next((tmp_path / "runs" / "watch").glob("lstm-*-seed0/run.json")).read_text(encoding="utf-8"))
    assert run["metrics"]["majority_accuracy"] > 0
    assert 'src="http' not in page, "it stands alone"
    assert "LSTM ahead of feed-forward" in capsys.readouterr().out


def test_a_page_escapes_what_it_shows(tmp_path: Path) -> None:
    page = Page("<b>", "a & b")
    page.table(["<i>"], [["<script>"]])
    page.write(tmp_path / "page.html")
    written = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script>" not in written
    assert "&lt;script&gt;" in written


def test_a_document_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("# Mine\n", encoding="utf-8")
    with pytest.raises(ValueError, match="does not have the lines"):
        write_into(document, "text")
    assert document.read_text(encoding="utf-8") == "# Mine\n"
