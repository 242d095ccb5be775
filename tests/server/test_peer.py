"""Two processes that ask each other."""

import asyncio

import pytest
from recurra_server.peer import Peer, PeerGoneError

LONGEST = 50


@pytest.mark.parametrize(
    "line", [b"nonsense\n", b"5\n", b"{}\n", b"\xff\n", b"x" * (LONGEST + 1) + b"\n", b""], ids=str
)
async def test_nobody_waits_for_one_that_is_gone_or_not_understood(line: bytes) -> None:
    lines = asyncio.StreamReader(limit=LONGEST)
    peer = Peer(lines, lambda _: None)
    waiting = asyncio.ensure_future(peer.ask("load"))
    listening = asyncio.ensure_future(peer.listen())
    await asyncio.sleep(0)
    if line:
        lines.feed_data(line)
    else:
        lines.feed_eof()
    async with asyncio.timeout(10):
        await listening
        for asked in (waiting, peer.ask("unload")):
            with pytest.raises(PeerGoneError):
                await asked
