"""What the engine asks of a store, held against each."""

import asyncio
import random
import secrets
import time

from recurra_server.engine.ports import Checkpoint, SessionStore


def checkpoint(store_key: str = "", epoch: int = 0, revision: int = 0, snapshot: bytes = b"\0\xffs") -> Checkpoint:
    return Checkpoint(store_key or secrets.token_hex(8), epoch, revision, 2, 60.0, snapshot)


async def begin(store: SessionStore, store_key: str = "", idle_timeout: float = 60.0) -> Checkpoint:
    """A new session, as its owner has it."""
    first = checkpoint(store_key)
    first = Checkpoint(first.store_key, 0, 0, 2, idle_timeout, first.snapshot)
    epoch = await store.create(first)
    assert epoch is not None
    return Checkpoint(first.store_key, epoch, 0, 2, idle_timeout, first.snapshot)


def next_of(before: Checkpoint, snapshot: bytes = b"next", revisions: int = 1) -> Checkpoint:
    return Checkpoint(before.store_key, before.epoch, before.revision + revisions, 2, before.idle_timeout, snapshot)


async def test_what_was_saved_is_taken_over_with_the_next_epoch(store: SessionStore) -> None:
    first = await begin(store)
    saved = Checkpoint(first.store_key, first.epoch, 5, 3, 12.25, bytes(range(256)) * 20)
    assert await store.save([saved]) == [True]
    taken = await store.take_over(first.store_key)
    assert taken is not None
    assert taken.epoch > first.epoch
    assert taken == Checkpoint(first.store_key, taken.epoch, 5, 3, 12.25, bytes(range(256)) * 20)


async def test_a_new_session_is_there_at_once_and_only_once(store: SessionStore) -> None:
    first = await begin(store)
    assert await store.create(checkpoint(first.store_key)) is None
    taken = await store.take_over(first.store_key)
    assert taken is not None
    assert taken.snapshot == first.snapshot


async def test_of_many_who_create_one_succeeds(store: SessionStore) -> None:
    one = checkpoint()
    epochs = await asyncio.gather(*(store.create(one) for _ in range(8)))
    assert sum(epoch is not None for epoch in epochs) == 1


async def test_there_is_nothing_to_take_over_of_what_never_was(store: SessionStore) -> None:
    assert await store.take_over(secrets.token_hex(8)) is None


async def test_whoever_lost_a_session_cannot_save_it(store: SessionStore) -> None:
    mine = await begin(store)
    theirs = await store.take_over(mine.store_key)
    assert theirs is not None
    assert await store.save([next_of(mine, b"late", 99)]) == [False]
    assert await store.save([next_of(theirs)]) == [True]
    taken = await store.take_over(mine.store_key)
    assert taken is not None
    assert taken.snapshot == b"next"


async def test_of_many_who_take_over_each_gets_another_epoch(store: SessionStore) -> None:
    first = await begin(store)
    taken = await asyncio.gather(*(store.take_over(first.store_key) for _ in range(8)))
    owners = [each for each in taken if each is not None]
    epochs = {owner.epoch for owner in owners}
    assert len(epochs) == 8
    assert min(epochs) > first.epoch
    kept = await store.save([next_of(owner) for owner in owners])
    assert [owner.epoch for owner, held in zip(owners, kept, strict=True) if held] == [max(epochs)]


async def test_an_older_checkpoint_that_comes_late_changes_nothing(store: SessionStore) -> None:
    first = await begin(store)
    old, new = next_of(first, b"old"), next_of(first, b"new", 2)
    assert await store.save([new]) == [True]
    assert await store.save([new]) == [True], "its owner may ask twice"
    assert await store.save([old]) == [True], "and still owns it"
    taken = await store.take_over(first.store_key)
    assert taken is not None
    assert taken.snapshot == b"new"


async def test_many_are_saved_at_once_and_each_by_its_own_epoch(store: SessionStore) -> None:
    sessions = [await begin(store) for _ in range(40)]
    lost = set(random.Random(0).sample(range(40), 15))
    for index in lost:
        await store.take_over(sessions[index].store_key)
    assert await store.save([next_of(one) for one in sessions]) == [index not in lost for index in range(40)]
    assert await store.save([]) == []


async def test_what_was_deleted_is_gone_and_its_owner_cannot_bring_it_back(store: SessionStore) -> None:
    first = await begin(store)
    await store.delete([(first.store_key, first.epoch, 60.0)])
    await store.delete([(first.store_key, first.epoch, 60.0)])
    assert await store.take_over(first.store_key) is None
    assert await store.save([next_of(first)]) == [False]
    again = await begin(store, first.store_key)
    assert again.epoch > first.epoch
    assert await store.save([next_of(first, b"late", 99)]) == [False]
    assert await store.save([next_of(again)]) == [True]


async def test_whoever_lost_a_session_cannot_delete_it(store: SessionStore) -> None:
    first, own, last = await begin(store), await begin(store), await begin(store)
    assert await store.take_over(first.store_key) is not None
    await store.delete([(one.store_key, one.epoch, 60.0) for one in (own, first, last)])
    await store.delete([])
    assert await store.take_over(first.store_key) is not None
    assert [await store.take_over(one.store_key) for one in (own, last)] == [None, None]


async def test_what_is_not_used_is_forgotten(store: SessionStore) -> None:
    first, used = await begin(store, idle_timeout=0.2), await begin(store, idle_timeout=0.2)
    deleted = await begin(store)
    await store.delete([(deleted.store_key, deleted.epoch, 0.2)])
    patience = time.monotonic() + 10
    while await store.create(first) is None:
        assert await store.save([next_of(used)]) == [True]
        assert time.monotonic() < patience
        await asyncio.sleep(0.01)
    assert await store.take_over(used.store_key) is not None
    while not (await store.save([next_of(deleted)]))[0]:
        assert time.monotonic() < patience
        await asyncio.sleep(0.01)


async def test_a_store_that_lost_all_gets_it_again_from_the_owners(store: SessionStore) -> None:
    unknown = checkpoint(epoch=int(time.time() * 1000) - 100_000, revision=7)
    assert await store.save([unknown]) == [True]
    taken = await store.take_over(unknown.store_key)
    assert taken is not None
    assert taken.epoch > unknown.epoch + 50_000, "above any that it may have given before"
    assert taken.revision == 7


async def test_a_store_that_lost_all_never_has_two_owners_of_one_epoch(store: SessionStore) -> None:
    began = int(time.time() * 1000) - 100_000
    first = checkpoint(epoch=began)  # its owner until a second took it over, of which it does not know
    second = checkpoint(first.store_key, epoch=began + 1, revision=9)
    assert await store.save([first]) == [True], "it is quicker than the second"
    third = await store.take_over(first.store_key)
    assert third is not None
    assert await store.save([second]) == [False]
    assert await store.save([next_of(third)]) == [True]


async def test_it_stays_the_same(store: SessionStore) -> None:
    assert await store.identity() == await store.identity() != ""
