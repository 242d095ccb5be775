"""Which steps run next, and how many time steps of each."""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from recurra_server.engine.accounts import Account
from recurra_server.engine.block import Block
from recurra_server.engine.steps import Step

_APART = 60.0
"""Seconds for which a caller runs apart from others after the model refused something of theirs."""

# What a model call has once: time steps, the bytes of constants, whether optional outputs are computed.
_Kind = tuple[int, bytes, bool]
_PLAIN: _Kind = (1, b"", False)
_BLOCKS: _Kind = (0, b"", False)  # one line for all, as none shares a call


class Call(NamedTuple):
    """Steps that run in one model call.

    Attributes:
        steps: Each of another session.
        length: Time steps that run of each.
        suspect: Whether they are of a call of several callers that failed. They run whoever waits, or those whose fault
            it was need only hang up, never to be found out.
    """

    steps: list[Step]
    length: int
    suspect: bool = False


class Line:
    """What one caller has ready: steps that can share a model call, or blocks.

    Attributes:
        steps: In the order they came.
        alone: What is to run in calls of their own, before the steps: blocks, or parts of calls that failed.
    """

    __slots__ = ("alone", "steps")

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self.alone: deque[list[Step] | Block] = deque()


class Scheduler:
    """Ready steps and blocks, at most one of a session, in lines: one for each caller and kind of model call.

    So who asks for no optional outputs does not wait for them to be computed for others. Blocks are a kind, too: one
    order of turns for both, lest who sends the one has more calls than who sends the other.

    Callers take turns, and the lines of a caller do (round robin; Nagle, "On Packet Switches with Infinite Storage",
    RFC 970, 1985). A call is one caller's turn, and is filled up with what others have for one of its kind. That is
    their turn, too, unless they have something of another kind. So what can share a call does, and whose steps need
    many calls slows down only themselves.

    Only pieces of equal length can share a model call. A chunk is therefore run in pieces
    whose lengths are powers of two: few lines, so batches fill. As lines take turns, neither
    long chunks nor single steps starve; in a line, who came first is first.

    A model may refuse some values, and then the whole call fails. Its steps are run again in halves, so that few calls
    tell whose fault it was; and for a while that caller's steps share no calls with others, so that what else they send
    slows down only themselves. (Not where callers are not told apart: there would be nobody else.)

    The idea of batching cells of different requests as they become ready is BatchMaker's
    (Gao et al., "Low Latency RNN Inference with Cellular Batching", EuroSys 2018).

    Attributes:
        apart: The callers who run apart from others, and until when; the soonest first.
    """

    def __init__(self, max_piece: int) -> None:
        self.apart: dict[Account, float] = {}
        self._max_piece = max_piece
        self._ready = 0
        # Both in the order of their turns. A line that was emptied is often filled again at once: it leaves only if it
        # is empty when it has its turn, and so does a caller.
        self._turns: dict[Account, dict[_Kind, Line]] = {}
        self._suspects: list[list[Step]] = []  # of several callers, and so before all turns; the next ones last

    @property
    def has_ready(self) -> bool:
        """Whether any step or block is in line."""
        return self._ready > 0

    def push(self, step: Step) -> None:
        """Put a step (back) in line."""
        self._line(step).steps.append(step)
        self._ready += 1

    def push_block(self, block: Block) -> None:
        """Put a block in line."""
        lines = self._turns.setdefault(block.owner, {})
        line = lines.get(_BLOCKS)
        if line is None:
            line = lines[_BLOCKS] = Line()
        line.alone.append(block)
        self._ready += 1

    def put_back(self, steps: Sequence[Step], now: float) -> None:
        """Put back the steps of a call that failed: they run again in two calls, in their caller's turns or at once."""
        owners = list(dict.fromkeys([step.session.owner for step in steps]))
        if len(owners) == 1:
            self.set_apart(owners[0], now)
            middle = (len(steps) + 1) // 2
            halves = [[*steps[middle:]], [*steps[:middle]]]
            self._line(steps[0]).alone.extendleft(half for half in halves if half)
        else:
            first = set(owners[: len(owners) // 2])
            halves = [[step for step in steps if (step.session.owner in first) is one] for one in (False, True)]
            self._suspects += halves
        self._ready += len(steps)

    def is_suspect(self, step: Step) -> bool:
        """Whether a step is to run in a `suspect` call."""
        return any(step in part for part in self._suspects)

    def set_apart(self, owner: Account, now: float) -> None:
        """Have a caller's steps share no calls with those of others from now on, for a while."""
        if owner.key:
            self.apart.pop(owner, None)
            self.apart[owner] = now + _APART

    def take(self, limit: int, now: float) -> Call | Block | None:
        """Take what runs in the next model call: up to `limit` steps, or a block; None where nothing is ready."""
        while self.apart and self.apart[first := next(iter(self.apart))] <= now:
            del self.apart[first]
        taken = self._next(limit)
        if isinstance(taken, Call):
            self._ready -= len(taken.steps)
        elif taken is not None:
            self._ready -= 1
        return taken

    def is_piece(self, steps: int) -> bool:
        """Whether so many time steps run in one model call."""
        return steps <= self._max_piece and steps & (steps - 1) == 0

    def piece_length(self, step: Step) -> int:
        """The number of time steps of this step that run in its next model call."""
        left = step.count - step.position
        return min(1 << (left.bit_length() - 1), self._max_piece)

    # --- inside ------------------------------------------------------------------------

    def _line(self, step: Step) -> Line:
        """The line of a step."""
        session = step.session
        if step.count == 1 and not session.group and not step.in_full:
            kind = _PLAIN
        else:
            kind = (self.piece_length(step), session.group, step.in_full)
        lines = self._turns.get(session.owner)
        if lines is None:
            lines = self._turns[session.owner] = {}
        line = lines.get(kind)
        if line is None:
            line = lines[kind] = Line()
        return line

    def _next(self, limit: int) -> Call | Block | None:
        """A part that was put back, or of the line whose turn it is: a block, or steps with those of lines like it."""
        if self._suspects:
            part = self._suspects.pop()
            return Call(part, self.piece_length(part[0]), suspect=True)
        turns = self._turns
        while turns:
            owner, lines = next(iter(turns.items()))
            kind, line = next(iter(lines.items()))
            if line.steps or line.alone:
                if len(turns) > 1:
                    turns[owner] = turns.pop(owner)  # to the end
                if len(lines) > 1:
                    lines[kind] = lines.pop(kind)
                if not line.alone:
                    return Call(_by_turns(self._alike(owner, kind, line, limit), limit), kind[0])
                alone = line.alone.popleft()
                return Call(alone, kind[0]) if isinstance(alone, list) else alone
            del lines[kind]
            if not lines:
                del turns[owner]
        return None

    def _alike(self, owner: Account, kind: _Kind, line: Line, most: int) -> list[deque[Step]]:
        """The steps of the line whose turn it is, and of others' lines that can share its call, of so many at most.

        Each has a step at least, so all have had a turn by it: the caller, or of who has other lines only that one.
        Whoever has something to run alone gets their turn for that.
        """
        found, served = [line.steps], list[Account]()
        if len(self._turns) > 1 and owner not in self.apart:
            for other, lines in self._turns.items():
                if len(found) == most:
                    break
                if other is owner or other in self.apart:
                    continue
                like = lines.get(kind)
                if like is not None and like.steps and not like.alone:
                    found.append(like.steps)
                    if len(lines) > 1:
                        lines[kind] = lines.pop(kind)  # to the end
                    else:
                        served.append(other)
        for other in served:
            self._turns[other] = self._turns.pop(other)
        return found


def _by_turns(sources: list[deque[Step]], limit: int) -> list[Step]:
    """Take up to `limit` steps, of each source as many as of the others while it has any."""
    if len(sources) == 1:
        steps = sources[0]
        return [steps.popleft() for _ in range(min(limit, len(steps)))]
    taken: list[Step] = []
    while sources and (room := limit - len(taken)):
        each = max(1, min(room // len(sources), *map(len, sources)))
        taken += [steps.popleft() for steps in sources[:room] for _ in range(each)]
        sources = [steps for steps in sources if steps]
    return taken
