"""Two servers, one store and a bad network: whatever happens in whatever order, a caller notices nothing.

The store is a real Valkey with the real script; time and network are the test's.
"""

import asyncio
import itertools
import random
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from recurra_server.engine import handover
from recurra_server.engine.durability import Durability, Save, away
from recurra_server.engine.errors import SessionMovedError, StepGapError, StepNotHeldError, StoreUnavailableError
from recurra_server.engine.ports import Checkpoint
from recurra_server.engine.sessions import Session
from recurra_server.engine.standing import Standing
from recurra_server.runtimes.onnx import OnnxRuntime
from recurra_server.stores.embedded import EmbeddedValkey
from recurra_server.stores.valkey import ValkeyStore
from valkey import Valkey

from tests.support.owner import Owner

WALKS = 150
STEPS = 60


@dataclass
class Server:
    """One of the two, and what it has sent that the store has not answered."""

    owner: Owner
    under_way: list[Save] = field(default_factory=list)

    @property
    def is_cut_off(self) -> bool:
        """Whether it knows that it cannot reach the store."""
        return not self.owner.engine.ledger.store_up


class TwoOwners:
    """The caller's rule: send the next number; at a gap go on from the number expected; keep what is not durable."""

    def __init__(
        self,
        runtimes: dict[str, OnnxRuntime],
        store: ValkeyStore,
        raw: Valkey,
        runner: asyncio.Runner,
        session_id: str,
        durability: Durability,
    ) -> None:
        self.runtimes = runtimes
        self.store = store
        self.raw = raw
        self.runner = runner
        self.id = session_id
        self.servers = [self._new(), self._new()]
        self.late: list[Checkpoint] = []  # sent by somebody who has given up on an answer
        self.inputs: list[int] = []
        self.answered = self.durable = 0
        self.highest = (0, 0)
        self.is_sync = durability is Durability.SYNC
        owner = self.servers[0].owner
        standing = Standing.beginning(owner.engine.model("counter"), {})
        first = handover.first_checkpoint(
            owner.engine, standing, 0.0, session_id=self.id, idle_timeout=600.0, durability=durability
        )
        epoch = self.runner.run(self.store.create(first))
        assert epoch is not None
        handover.own(owner.engine, standing, replace(first, epoch=epoch), 0.0)

    # --- what happens --------------------------------------------------------------------

    def step(self, which: int, x: int, reply_is_lost: bool) -> None:
        """The caller sends its next step to either server, or again the one of which it heard nothing."""
        if self.answered == len(self.inputs):
            self.inputs.append(x)
        number = self.answered + 1
        for tries in itertools.count():
            assert tries < 1000, "it comes to an end"
            try:
                value, durable = self._send(which, number)
            except (SessionMovedError, StoreUnavailableError):
                return  # it may try again
            except StepGapError as gap:
                number = int(gap.metadata["expected_step"])
                assert self.durable < number <= self.answered, "the caller still has what is asked for"
                continue
            except StepNotHeldError:
                assert number <= self.answered, "what was applied before is answered again"
                number += 1
                continue
            if reply_is_lost:
                return
            assert value == sum(self.inputs[:number]), "as in an uninterrupted run"
            assert durable <= number
            assert not self.is_sync or durable >= number
            self.durable = max(self.durable, durable)
            if number > self.answered:
                self.answered = number
                return
            number += 1

    def checkpoint(self, which: int) -> None:
        """A server sends what has changed."""
        server = self.servers[which]
        if not server.under_way:
            server.under_way = server.owner.take()

    def arrive(self, which: int) -> None:
        """What a server has sent arrives and is answered."""
        server = self.servers[which]
        if not server.is_cut_off:
            batch, server.under_way = server.under_way, []
            self._save(server, batch)

    def give_up(self, which: int) -> None:
        """A server hears nothing of what it has sent, which may still arrive."""
        server = self.servers[which]
        self.late += [save.checkpoint for save in server.under_way]
        for save in server.under_way:
            save.durable.failed(save, 0.0)
        server.under_way = []

    def arrive_late(self, which: int) -> None:
        """It does arrive."""
        if self.late:
            self.runner.run(self.store.save([self.late.pop(which % len(self.late))]))

    def cut_off(self, which: int) -> None:
        """The network to the store breaks, or is there again."""
        self.give_up(which)
        server = self.servers[which]
        server.owner.engine.ledger.trouble = "" if server.is_cut_off else "cannot be reached"

    def crash(self, which: int) -> None:
        """A server dies and starts anew; what it has sent may still arrive."""
        self.late += [save.checkpoint for save in self.servers[which].under_way]
        self.servers[which] = self._new()

    def take_over(self, which: int) -> None:
        """A server is asked for the session."""
        with suppress(StoreUnavailableError):
            self._session(which)

    # --- what must hold ------------------------------------------------------------------

    def the_store_never_goes_back(self) -> None:
        """Neither to an older epoch nor to an older checkpoint of one."""
        header = self.raw.getrange(f"recurra:session:{self.id}", 0, 15)
        assert isinstance(header, bytes)
        place = int.from_bytes(header[:8], "big"), int.from_bytes(header[8:], "big")
        assert place >= self.highest
        self.highest = place

    # --- inside --------------------------------------------------------------------------

    def _new(self) -> Server:
        return Server(Owner({"counter": self.runtimes["counter"]}))

    def _session(self, which: int) -> Session:
        engine = self.servers[which].owner.engine
        found = engine.find([self.id], 0.0)
        if found is not None:
            return found[0]
        if self.servers[which].is_cut_off:
            raise away("")
        checkpoint = self.runner.run(self.store.take_over(self.id))
        assert checkpoint is not None, "it was never closed"
        session = handover.adopt(engine, checkpoint, 0.0)
        assert session.applied >= self.durable, "what was said to be durable is"
        return session

    def _send(self, which: int, number: int) -> tuple[float, int]:
        """Send a step.

        Returns:
            The output, and the last durable step that the reply tells.
        """
        server, session = self.servers[which], self._session(which)
        step = server.owner.submit(session, np.full((1, 1), self.inputs[number - 1]), number=number)
        server.owner.run()
        while step not in server.owner.answered:  # it waits for a checkpoint
            batch, server.under_way = server.under_way or server.owner.take(), []
            self._save(server, batch)
        server.owner.answered.clear()
        if step.error is not None:
            raise step.error
        assert session.durable is not None
        return float(np.frombuffer(step.outputs[0], np.float32).item()), session.durable.step

    def _save(self, server: Server, batch: list[Save]) -> None:
        owned = self.runner.run(self.store.save([save.checkpoint for save in batch]))
        for save, still_owned in zip(batch, owned, strict=True):
            if still_owned:
                save.durable.saved(save, 0.0)
            else:
                server.owner.engine.let_go(save.durable.session)


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = EmbeddedValkey(Path(tmp_path_factory.mktemp("v")))
    server.start()
    yield server.url
    server.stop()


@pytest.mark.parametrize("durability", [Durability.ASYNC, Durability.SYNC])
def test_a_caller_notices_nothing(runtimes: dict[str, OnnxRuntime], valkey: str, durability: Durability) -> None:
    with asyncio.Runner() as runner, Valkey.from_url(valkey) as raw:
        store = ValkeyStore(valkey)
        for seed in range(WALKS):
            them = TwoOwners(runtimes, store, raw, runner, f"{durability.name}-{seed}", durability)
            chosen = random.Random(seed)
            mostly = chosen.random() ** 3  # how often the second server is met: mostly seldom
            happen = [
                them.checkpoint,
                them.arrive,
                them.give_up,
                them.arrive_late,
                them.cut_off,
                them.crash,
                them.take_over,
            ]
            weights = [usual * chosen.choice([0, 1, 1, 2]) for usual in (12, 4, 6, 6, 2, 1, 1)]
            for _ in range(STEPS):
                which = int(chosen.random() < mostly)
                if chosen.random() < 0.5 or not any(weights):
                    them.step(which, chosen.randint(-9, 9), chosen.random() < 0.2)
                else:
                    chosen.choices(happen, weights)[0](which)
                them.the_store_never_goes_back()
        runner.run(store.close())
