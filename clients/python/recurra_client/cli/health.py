"""The command `recurra health`."""

from recurra_client.cli.common import DEFAULT_SERVER, Server, console
from recurra_client.cli.usererror import UserError


async def health(*, server: Server = DEFAULT_SERVER) -> None:
    """Tell whether a server serves; ends with 1 where it does not. Needs no token."""
    async with server.client(reconnect=0) as client:
        if not await client.is_serving():
            raise UserError(f"{server.server} takes no new sessions")
    console().print(f"{server.server} serves")
