"""Two processes that ask each other, over pipes: a line of JSON for each question and each answer."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from recurra_server.engine.errors import EngineError, InternalError, ModelNotFoundError, ModelRefusedError

_log = structlog.get_logger(__name__)
LONGEST_LINE = 16 << 20
_THERE = "there"  # is answered by the other's event loop, whatever else it does
# Errors that keep their kind on the other side.
_KNOWN = {kind.reason: kind for kind in (ModelNotFoundError, ModelRefusedError)}
Answer = Callable[[str, dict[str, Any]], Awaitable[dict[str, Any]]]


class PeerGoneError(Exception):
    """The other process ended before it answered, or is not understood any more."""


class Peer:
    """The process at the other end.

    Args:
        lines: What it says.
        tell: Sends it a line.

    Attributes:
        answer: Called for each of its questions with what is asked and the facts; returns the answer's facts, or
            raises what the other side is to be told.
        gone: Whether there is nobody any more.
    """

    answer: Answer

    def __init__(self, lines: asyncio.StreamReader, tell: Callable[[bytes], object]) -> None:
        self._lines = lines
        self._tell = tell
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self.gone = False

    async def ask(self, what: str, **facts: Any) -> dict[str, Any]:
        """Ask, and wait for the answer.

        Raises:
            PeerGoneError: There is nobody any more.
            EngineError: The answer is an error.
        """
        if self.gone:
            raise PeerGoneError
        number, told = next(self._numbers), asyncio.get_running_loop().create_future()
        self._asked[number] = told
        try:
            self._send({"ask": number, "what": what, "facts": facts})
            answer: dict[str, Any] = await told
            return answer
        finally:
            del self._asked[number]

    async def responds(self, patience: float) -> bool:
        """Whether its event loop answers within so many seconds."""
        try:
            async with asyncio.timeout(patience):
                await self.ask(_THERE)
        except (TimeoutError, PeerGoneError):
            return False
        return True

    async def listen(self) -> None:
        """Take in what the other process says until it ends, or says what is neither a question nor an answer.

        After that it counts as gone: what it was asked may have been lost with that line.
        """
        try:
            while line := await self._lines.readline():
                self._take_in(json.loads(line))
        except Exception:
            _log.exception("peer_not_understood")
        finally:
            self.gone = True
            for told in self._asked.values():
                if not told.done():
                    told.set_exception(PeerGoneError())

    def _take_in(self, message: dict[str, Any]) -> None:
        if "ask" in message:
            task = asyncio.ensure_future(self._reply(message))
            self._answering.add(task)
            task.add_done_callback(self._answering.discard)
        elif (told := self._asked.get(message["answer"])) is not None and not told.done():
            if (error := message.get("error")) is None:
                told.set_result(message["facts"])
            else:
                kind = _KNOWN.get(error["reason"], InternalError)
                told.set_exception(kind(error["message"], **error["metadata"]))

    async def _reply(self, question: dict[str, Any]) -> None:
        reply: dict[str, Any] = {"answer": question["ask"]}
        try:
            what = question["what"]
            reply["facts"] = {} if what == _THERE else await self.answer(what, question["facts"])
        except EngineError as error:
            reply["error"] = {"reason": error.reason, "message": error.message, "metadata": error.metadata}
        except PeerGoneError:
            return  # whoever asked has gone, too
        except Exception:
            _log.exception("question_not_answered", what=question["what"])
            internal = InternalError("the call failed inside the server; its log tells more")
            reply["error"] = {"reason": internal.reason, "message": internal.message, "metadata": {}}
        self._send(reply)

    def _send(self, message: dict[str, Any]) -> None:
        self._tell(json.dumps(message).encode() + b"\n")
