"""What a server says of itself when it starts."""

from pathlib import Path

import pytest
from recurra_server.settings import Settings
from recurra_server.starting import about_store


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
def test_where_sessions_are_kept_is_told_without_its_password(store: str, shown: str) -> None:
    said = about_store(Settings(models=Path(), store=store))
    assert shown in said
    assert "secret" not in said
