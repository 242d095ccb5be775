"""Publishing: whole, at once, and only what has verified."""

from pathlib import Path

import pytest
from recurra_server.runtimes.repository import find_models
from recurra_training.errors import PublishError
from recurra_training.publish import publish


def write(path: Path) -> None:
    path.write_text("a model")


def versions(models: Path) -> list[str]:
    return sorted(path.name for path in (models / "net").iterdir())


def test_versions_count_up(tmp_path: Path) -> None:
    published = [publish(tmp_path, "net", write) for _ in range(11)]
    assert published[-1] == tmp_path / "net" / "11" / "model.onnx"
    assert published[-1].read_text() == "a model"
    (tmp_path / "net" / "40").mkdir()
    assert publish(tmp_path, "net", write).parent.name == "41"


def test_nothing_is_seen_before_it_is_whole(tmp_path: Path) -> None:
    publish(tmp_path, "net", write)

    def write_and_look(path: Path) -> None:
        write(path)
        assert [model.version for model in find_models(tmp_path)] == ["1"]

    publish(tmp_path, "net", write_and_look)
    assert [model.version for model in find_models(tmp_path)] == ["1", "2"]


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail(path: Path) -> None:
        write(path)
        raise ValueError("not verified")

    with pytest.raises(ValueError, match="not verified"):
        publish(tmp_path, "net", fail)
    assert list(tmp_path.iterdir()) == []
    publish(tmp_path, "net", write)
    with pytest.raises(ValueError, match="not verified"):
        publish(tmp_path, "net", fail)
    assert versions(tmp_path) == ["1"]


def test_a_version_is_not_overwritten(tmp_path: Path) -> None:
    publish(tmp_path, "net", write, "1.2-rc_3")
    with pytest.raises(PublishError, match="there already"):
        publish(tmp_path, "net", write, "1.2-rc_3")


def test_a_version_that_came_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    def write_theirs(path: Path) -> None:
        path.write_text("theirs")

    def write_while_another_does(path: Path) -> None:
        write(path)
        publish(tmp_path, "net", write_theirs, "5")

    with pytest.raises(PublishError, match="publish again"):
        publish(tmp_path, "net", write_while_another_does, "5")
    assert (tmp_path / "net" / "5" / "model.onnx").read_text() == "theirs"
    assert versions(tmp_path) == ["5"]


def test_after_a_version_that_is_no_number_one_must_be_said(tmp_path: Path) -> None:
    publish(tmp_path, "net", write, "beta")
    with pytest.raises(PublishError, match="say --version"):
        publish(tmp_path, "net", write)
    assert versions(tmp_path) == ["beta"]


@pytest.mark.parametrize(
    ("name", "version"), [("../net", ""), ("", ""), ("net", ".hidden"), ("net", "a/b"), ("x" * 65, "")]
)
def test_names_that_the_format_does_not_allow_are_refused(tmp_path: Path, name: str, version: str) -> None:
    with pytest.raises(PublishError, match="must be 1 to 64"):
        publish(tmp_path / "models", name, write, version)
    assert list(tmp_path.iterdir()) == []
