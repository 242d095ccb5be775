"""The processes that torchrun started for one training, of which this may be one."""

import os

from torch import distributed


def size() -> int:
    """How many there are; 0 where torchrun did not start this process."""
    return int(os.environ["WORLD_SIZE"]) if distributed.is_torchelastic_launched() else 0


def size_here() -> int:
    """How many of them are on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"])


def is_first() -> bool:
    """Whether this one writes the files, and tells how it goes: alone, or the first."""
    return size() == 0 or os.environ["RANK"] == "0"


def meet() -> None:
    """Wait until all have come as far."""
    if size():
        if not distributed.is_initialized():
            distributed.init_process_group("gloo")
        distributed.barrier()


def part() -> None:
    """Nothing more is done together."""
    if distributed.is_initialized():
        distributed.destroy_process_group()
