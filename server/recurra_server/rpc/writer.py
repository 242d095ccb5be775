"""Writes the messages of a stream, each at once, without a task of its own."""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any


class EagerWriter:
    """One message after another to a stream; the first starts to be sent before `put` returns.

    A task that is told to write begins with the next turn of the event loop, and costs a switch to it for
    every message. Here the write is begun where the message is made, by driving its coroutine directly: what
    asyncio calls an eager task from Python 3.12 on, and at a third of the cost.

    Args:
        write: Sends a message; a stream sends one at a time.
        written: Called after each message that was sent.
        failed: Called once, when sending has failed; nothing more is sent.
    """

    def __init__(
        self,
        write: Callable[[Any], Coroutine[Any, Any, None]],
        written: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._write = write
        self._written = written
        self._failed = failed
        self._sending: Coroutine[Any, Any, None] | None = None
        self._outbox: deque[Callable[[], Any]] = deque()
        self._closed = False

    def put(self, render: Callable[[], Any]) -> None:
        """Send the message that `render` makes, after those put before it; it is made when its turn has come."""
        if self._closed:
            return
        if self._sending is not None:
            self._outbox.append(render)
        else:
            self._sending = self._write(render())
            self._resume()

    def close(self) -> None:
        """Begin nothing more; a message that is being sent ends on its own, whether it arrives or not."""
        self._closed = True
        self._outbox.clear()

    def _resume(self, _: object = None) -> None:
        """Go on with the message that is being sent, and with the next ones as far as they go."""
        while self._sending is not None:
            try:
                waited_for = self._sending.send(None)
            except StopIteration:
                self._sending = self._write(self._outbox.popleft()()) if self._outbox else None
                self._written()
            except Exception as error:
                self._sending = None
                self._closed = True
                self._failed(error)
            else:
                # As a task does: tell the future that its await was seen, and come back when it is done.
                waited_for._asyncio_future_blocking = False
                waited_for.add_done_callback(self._resume)
                return
