"""Logs a run to what is installed of TensorBoard and MLflow, beside `history.csv`, which is always there."""

import importlib.util
import os
from pathlib import Path

from pytorch_lightning.loggers import Logger, MLFlowLogger, TensorBoardLogger


def loggers(folder: Path) -> list[Logger]:
    """The loggers of a run.

    TensorBoard reads `<folder>/tensorboard`. MLflow is logged to where MLFLOW_TRACKING_URI says, if it says anything:
    experiment `<task>`, run `<folder>`.
    """
    found: list[Logger] = []
    if importlib.util.find_spec("tensorboard"):
        found.append(TensorBoardLogger(folder, name="tensorboard", version=""))
    if importlib.util.find_spec("mlflow") and os.environ.get("MLFLOW_TRACKING_URI"):
        found.append(MLFlowLogger(folder.parent.name, run_name=folder.name))
    return found
