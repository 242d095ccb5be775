"""Finds out which of several processes is stuck, as an orchestrator does with a server that it probes."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from recurra_server.peer import Peer

_LOOKS: Final = 6
"""So many have to find no answer, with none between them that does: not just one, as where the machine was asleep."""


async def watch(members: Mapping[int, Peer], patience: float, stuck: Callable[[int], object]) -> None:
    """Look for ever after processes that live, and tell of each that has not answered for too long.

    They are held against this process alone, not against one another: all can be stuck, as where the same request was
    sent to each, or one while the others have died. What keeps this one from running, too, as where the machine was
    asleep, is no fault of theirs: a look from which it comes back late counts against nobody.

    Args:
        members: The processes by their places, as they are now.
        patience: Seconds for which one may leave everything unanswered.
        stuck: Is called with the place of one that does so longer.
    """
    loop = asyncio.get_running_loop()
    each = patience / _LOOKS
    missed: dict[Peer, int] = {}
    while True:
        began = loop.time()
        present = {place: peer for place, peer in members.items() if not peer.gone}
        *answered, _ = await asyncio.gather(*(peer.responds(each) for peer in present.values()), asyncio.sleep(each))
        in_time = loop.time() - began < 2 * each
        missed = {
            peer: 0 if well else missed.get(peer, 0) + in_time
            for peer, well in zip(present.values(), answered, strict=True)
        }
        for place, peer in present.items():
            if missed[peer] >= _LOOKS and members.get(place) is peer:
                missed[peer] = 0
                stuck(place)
