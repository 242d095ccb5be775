"""Operators that ONNX does not have: from shared libraries that whoever runs the server has listed."""

from collections.abc import Sequence
from pathlib import Path

from onnxruntime import SessionOptions

from recurra_server.engine.errors import one_line


class OperatorsError(Exception):
    """A library cannot be used.

    Attributes:
        message: Which, and why, in a line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


def register(libraries: Sequence[Path], options: SessionOptions) -> None:
    """Let the model of a session use the operators of libraries.

    Raises:
        OperatorsError: One cannot be read, or is no library of operators.
    """
    for library in libraries:
        try:
            path = library.resolve(strict=True)  # a bare name would be looked for among the system's libraries
            options.register_custom_ops_library(str(path))
        except OSError as error:
            raise OperatorsError(f"{library}: {error.strerror}") from None
        except Exception as error:
            raise OperatorsError(f"{library} is no library of custom operators: {one_line(error)}") from None
