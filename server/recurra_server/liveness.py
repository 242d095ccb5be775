"""Finds out which of several processes is stuck, as an orchestrator does with a server that it probes."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from recurra_server.peer import Peer

_LOOKS: Final = 6
"""So many in a row have to find no answer: not just one, as where the machine was asleep."""


async def watch(members: Mapping[int, Peer], patience: float, stuck: Callable[[int], object]) -> None:
    """Look for ever after processes that live, and tell of each that has not answered for too long.

    While none of them answers, nothing is told: then it is none of theirs that keeps them from it.

    Args:
        members: The processes by their places, as they are now.
        patience: Seconds for which one may leave everything unanswered.
        stuck: Is called with the place of one that does so longer.
    """
    each = patience / _LOOKS
    missed: dict[Peer, int] = {}
    while True:
        present = {place: peer for place, peer in members.items() if not peer.gone}
        *answered, _ = await asyncio.gather(*(peer.responds(each) for peer in present.values()), asyncio.sleep(each))
        missed = {
            peer: 0 if well else missed.get(peer, 0) + 1 for peer, well in zip(present.values(), answered, strict=True)
        }
        for place, peer in present.items():
            if missed[peer] >= _LOOKS and any(answered) and members.get(place) is peer:
                missed[peer] = 0
                stuck(place)
