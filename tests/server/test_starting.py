"""What a server says of itself when it starts."""

from pathlib import Path

import pytest
from recurra_server.settings import Settings
from recurra_server.starting import StartError, about_encryption, about_store, open_store

from tests.support.attacks import Attack


@pytest.mark.parametrize(
    ("store", "shown"),
    [
        ("embedded:/var/state", "embedded:/var/state"),
        ("valkey://user:secret@host:6379?db=1&password=secret", "valkey://host:6379"),
        ("valkey://user:p@secret@host:6379", "valkey://host:6379"),
        ("sentinel://a:1,b:2/service?password=secret", "sentinel://a:1,b:2/service"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_where_sessions_are_kept_is_told_without_its_password(store: str, shown: str, attack: Attack) -> None:
    said = about_store(Settings(models=Path(), store=store))
    assert shown in said
    assert "secret" not in said
    attack("log", "a store's URL with a password, however it is written", "told without it")


@pytest.mark.parametrize(
    "store",
    [
        "valkey://:sec/ret@host:6379",
        "valkey://:sec#ret@host:6379",
        "valkey://:sec?ret@host:6379",
        "valkey://:12/secret@host:6379",  # which would be port 12 of this machine
        "valkey://user:12?secret@host:6379",
        "valkeys://user:se[cret@host:6379",
        "cluster://:sec/ret@host:6379",
        "sentinel://host:26379/service?password=sec@ret",
        "http://:secret@host",
        "valkey://host:secret",
        "secret",
    ],
)
def test_a_wrong_url_is_refused_without_any_of_its_text(store: str, attack: Attack) -> None:
    with pytest.raises(StartError) as refusal:
        open_store(store)
    said = str(refusal.value)
    assert said.startswith("--store: that is no URL of a store")
    assert "%2F" in said
    assert "sec" not in said
    assert "ret" not in said
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__
    attack("log", "a store's URL with a password, mistyped", "refused without any of its text")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "[::1]", "localhost"])
def test_without_encryption_it_says_whom_it_is_for(host: str) -> None:
    assert about_encryption(Settings(models=Path(), host=host)) == "without encryption, for this machine only"
    for other in ("0.0.0.0", "::", "10.1.2.3", "example.org"):  # noqa: S104
        assert "WITHOUT ENCRYPTION" in about_encryption(Settings(models=Path(), host=other))


async def test_a_password_that_is_escaped_is_taken() -> None:
    store = open_store("valkey://:se%2F%23%3F%40cret@host:6379")
    await store.stop()
