"""A timer to some 50 microseconds, where asyncio's own are a millisecond coarse."""

import asyncio
import ctypes
import os
import struct
import sys
from collections.abc import Callable
from typing import Final

_CLOCK_MONOTONIC: Final = 1
_TFD_NONBLOCK: Final = os.O_NONBLOCK if hasattr(os, "O_NONBLOCK") else 0


class Timer:
    """Calls back after a time: on Linux by timerfd, elsewhere by the event loop.

    Python has `os.timerfd_create` only from 3.13 on.

    Args:
        callback: What to call, on the running event loop.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._callback = callback
        self._handle: asyncio.Handle | None = None
        self._file = -1
        if sys.platform == "linux":
            self._library = ctypes.CDLL(None, use_errno=True)
            self._file = self._library.timerfd_create(_CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self._file >= 0:
            self._loop.add_reader(self._file, self._expired)

    def set(self, seconds: float) -> None:
        """Call back once, after this many seconds; a time that is over: on the loop's next turn."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        if seconds <= 0:
            self._handle = self._loop.call_soon(self._callback)
        elif self._file < 0:
            self._handle = self._loop.call_later(seconds, self._callback)
        else:
            whole = int(seconds)
            # struct itimerspec: the interval (none), then the first expiry, both in seconds and nanoseconds.
            value = struct.pack("@llll", 0, 0, whole, max(1, int((seconds - whole) * 1e9)))
            self._library.timerfd_settime(self._file, 0, value, None)

    def close(self) -> None:
        """Call back no more."""
        if self._handle is not None:
            self._handle.cancel()
        if self._file >= 0:
            self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _expired(self) -> None:
        try:
            os.read(self._file, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._callback()
