"""A virtual environment for each peer: their requirements contradict one another."""

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Final

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recurra-bench"
_INSTALL_SECONDS: Final = 900.0
# Where PyTorch publishes builds without CUDA, which would be gigabytes of what is never used here.
_TORCH_INDEX: Final = "https://download.pytorch.org/whl/cpu"


class UnavailableError(Exception):
    """A peer cannot be installed or started here; the message says why in one line."""


def environment(name: str, requirements: tuple[str, ...], cache: Path = CACHE) -> Path:
    """Make a virtual environment with these requirements, once.

    Args:
        name: Of the peer.
        requirements: As pip takes them.
        cache: The folder that holds the environments.

    Returns:
        The environment's folder of programs.

    Raises:
        UnavailableError: pip cannot install them.
    """
    text = "\n".join((sys.version, *requirements))
    folder = cache / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    programs = folder / "bin"
    stamp = folder / ".installed"  # written last: an interrupted installation is begun again
    if stamp.exists():
        return programs
    print(f"installing {name}: {' '.join(requirements)} ...", file=sys.stderr, flush=True)
    venv.create(folder, with_pip=True, clear=True)
    command = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if any(requirement.startswith("torch==") for requirement in requirements):
        command += ["--extra-index-url", _TORCH_INDEX]
    try:
        subprocess.run([*command, *requirements], check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        lines = [line for line in error.stderr.splitlines() if line.strip()] or ["pip failed"]
        why = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise UnavailableError(f"cannot be installed: {why}") from None
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"cannot be installed within {_INSTALL_SECONDS:.0f} s") from None
    stamp.write_text("\n".join(requirements) + "\n")
    return programs
