"""The public keys of a token issuer, which change now and then (JWKS, RFC 7517)."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import structlog
from jwt import PyJWK, PyJWTError

_log = structlog.get_logger(__name__)
_TIMEOUT = 5.0
_LARGEST = 1 << 20  # bytes
_AGAIN_AFTER = 10.0  # seconds: a token of an unknown key asks for them no sooner
_RENEW_AFTER = 300.0  # seconds: nobody need ask, and what the issuer has withdrawn is gone


class IssuerKeys:
    """The keys at an https URL, or in a file.

    They are fetched every so often, and when somebody shows a token of a key that is not among them: so new keys
    are known at once, and whoever makes up keys has them fetched no more often than once in ten seconds.
    """

    def __init__(self, source: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.source = source
        self._clock = clock
        self._keys: dict[str | None, PyJWK] = {}
        self._asked_at = -float("inf")
        self._fetching: asyncio.Task[None] | None = None

    def find(self, key_id: str | None) -> PyJWK | None:
        """The key of this id; without an id, the only key that there is."""
        if key_id is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        return self._keys.get(key_id)

    def has(self, key: object) -> bool:
        """Whether what `find` once returned is still a key of the issuer's."""
        return key in self._keys.values()

    async def look_again(self) -> None:
        """Fetch the keys, unless that has been done just now."""
        if self._fetching is not None or self._clock() - self._asked_at >= _AGAIN_AFTER:
            await self.fetch()

    async def renew(self) -> None:
        """Fetch the keys, if that was last tried five minutes ago."""
        if self._clock() - self._asked_at >= _RENEW_AFTER:
            await self.fetch()

    async def fetch(self) -> None:
        """Fetch the keys now; where that fails, those that are known stay.

        Who comes meanwhile waits for the same answer.
        """
        if self._fetching is None:
            self._asked_at = self._clock()
            self._fetching = asyncio.ensure_future(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        await asyncio.shield(self._fetching)

    async def _fetch(self) -> None:
        try:
            text = await asyncio.to_thread(_read, self.source)
            keys = _keys_in(text)
        except Exception as error:  # whatever the issuer answers, and however
            _log.error("keys_not_fetched", source=self.source, why=str(error))
            return
        self._keys = {key.key_id: self._known(key) for key in keys if key.public_key_use in (None, "sig")}

    def _known(self, key: PyJWK) -> PyJWK:
        """The same key as it was found before, so that it can be told from one that only has its id."""
        before = self._keys.get(key.key_id)
        if before is not None and (before.algorithm_name, before.key) == (key.algorithm_name, key.key):
            return before
        return key

    def _fetched(self, _: object) -> None:
        self._fetching = None


def _keys_in(text: str) -> list[PyJWK]:
    """The keys of a set: those of kinds that are known. There may be none, where the issuer has withdrawn all."""
    keys = []
    for entry in json.loads(text)["keys"]:
        with suppress(PyJWTError):
            keys.append(PyJWK(entry))
    return keys


def _read(source: str) -> str:
    if urlsplit(source).scheme not in ("http", "https"):
        return Path(source).read_text()
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(source, timeout=_TIMEOUT) as answer:
        data: bytes = answer.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise ValueError(f"there are more than {_LARGEST:,} bytes of keys")
    return data.decode()


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Keys come from where the file says, and nowhere else."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Do not follow."""
