"""What can go wrong in a way that the user can mend."""


class TrainingError(Exception):
    """Base of every error that this package raises on purpose; the command line shows its message as one line."""

    @property
    def message(self) -> str:
        """What was wrong, what was expected, what to do."""
        return str(self)


class TaskError(TrainingError):
    """The data of a task cannot be used."""


class RunError(TrainingError):
    """A run folder does not hold what is asked of it."""


class ExportError(TrainingError):
    """A network cannot be written as an ONNX graph that runs step by step."""


class SignatureError(TrainingError):
    """A signature is missing, cannot be read, or does not fit its graph."""


class VerificationError(TrainingError):
    """A model answers differently depending on how its steps are cut or batched."""


class PublishError(TrainingError):
    """A version cannot be put into the model repository."""
