"""Each invariant of the world catches the code that breaks it: the product is changed while it runs."""

import types
from contextlib import contextmanager

from energybid.agent import growing, journal, process, recorder, upload
from energybid.agent.judgement import Judge
from energybid.agent.polling import BusPoller
from energybid.core import log
from energybid.core.errors import JournalDamagedError
from energybid.drivers.modbus import driver, rtu
from energybid.headend.ledger import Ledger
from energybid.headend.store import Store
from energybid.simulator.world import watch
from energybid.simulator.world.scenario import Faults, Scenario
from energybid.simulator.world.world import World, simulate


def scenario(happenings=(), *, serial=None, **settings) -> Scenario:
    """A world in which only these happen; "name per_day least most" each."""
    faults = Faults.none().model_dump(mode="python")
    quiet = {name: value for name, value in faults.items() if isinstance(value, float)}
    chosen = {}
    for line in happenings:
        name, per_day, least, most = line.split(",")
        chosen[name] = {"per_day": float(per_day), "least": least, "most": most}
    silent = {name: {"per_day": 0.0} for name in Faults.kinds() if name not in {"tcp", "serial", "market_lies"}}
    table = {**quiet, **silent, **chosen, "tcp": {}, "serial": serial or {}}
    return Scenario.model_validate({"faults": table, **settings})


def violated(days: float, world: Scenario, seed: int = 1) -> set[str]:
    return {violation.invariant for violation in simulate(seed, days, world).violations}


def test_without_a_change_nothing_is_violated():
    world = scenario(
        ["gateway_power_cut,24,5 s,10 s", "clock_steps,24,1 s,1 s", "meter_reset,24,1 s,1 s"],
        serial={"duplicate": 0.2},
    )
    assert violated(0.2, world) == set()


def test_gap_an_entry_that_the_journal_forgets(monkeypatch):
    def forgetful(entries, **rest):
        return watch.columns.encode(entries[:-1] if len(entries) > 2 else entries, **rest)

    monkeypatch.setattr(growing, "columns", types.SimpleNamespace(**vars(growing.columns) | {"encode": forgetful}))
    assert "gap" in violated(0.01, scenario())


def test_unsent_what_is_not_committed_is_sent(monkeypatch):
    def lazy(self, statements):
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")
        for statement, bindings in statements:
            self._database.execute(statement, bindings)

    monkeypatch.setattr(journal.Journal, "_transaction", lazy)
    assert "unsent" in violated(0.01, scenario())


def test_signature_a_checkpoint_that_is_not_signed(monkeypatch):
    sign = log.sign_checkpoint
    monkeypatch.setattr(log, "sign_checkpoint", lambda *parts: sign(*parts)._replace(signature=bytes(64)))
    assert "signature" in violated(0.01, scenario())


def test_root_a_receipt_over_another_root(monkeypatch):
    sign = Ledger._sign
    monkeypatch.setattr(
        Ledger,
        "_sign",
        lambda self, gateway, epoch, size, root, after: sign(self, gateway, epoch, size, root[::-1], after),
    )
    assert "root" in violated(0.01, scenario())


def test_premature_a_receipt_before_the_commit(monkeypatch):
    @contextmanager
    def lazy(self):
        if not self._database.in_transaction:
            self._database.execute("BEGIN IMMEDIATE")
        yield

    monkeypatch.setattr(Store, "transaction", lazy)
    assert "premature" in violated(0.01, scenario())


def test_shown_a_row_that_grows_whoever_was_given_it(monkeypatch):
    monkeypatch.setattr(growing.Newest, "shown", lambda *_: None)
    assert "shown" in violated(0.05, scenario(batch_interval="5 s"))


def test_lost_a_commit_that_is_not_synced(monkeypatch):
    prepare = journal.Journal._prepare

    def careless(self, *rest, **more):
        prepare(self, *rest, **more)
        self._database.execute("PRAGMA synchronous = OFF")

    monkeypatch.setattr(journal.Journal, "_prepare", careless)
    assert "lost" in violated(0.2, scenario(["gateway_power_cut,100,5 s,10 s"]))


def test_lost_an_entry_that_the_headend_stores_otherwise(monkeypatch):
    append = Store.append

    def forging(self, row, canonical, *rest, **more):
        return append(self, row, [*canonical[:-1], canonical[-1][:-1] + b"\x00"], *rest, **more)

    monkeypatch.setattr(Store, "append", forging)
    assert "lost" in violated(0.01, scenario())


def test_value_a_wrong_number(monkeypatch):
    sample = driver.plain_sample

    def wrong(*parts):
        right = sample(*parts)
        return right._replace(values=(1, *right.values[1:]))

    monkeypatch.setattr(driver, "plain_sample", wrong)
    assert "value" in violated(0.01, scenario())


def test_value_a_reading_that_says_it_took_since_the_start(monkeypatch):
    """Every answer of the meter would lie within its time."""
    sample = driver.plain_sample
    monkeypatch.setattr(driver, "plain_sample", lambda *parts: (s := sample(*parts))._replace(span_ms=s.mono_ms))
    assert "value" in violated(0.01, scenario())


def test_value_an_answer_that_came_twice(monkeypatch):
    monkeypatch.setattr(rtu, "REPEAT_S", 0.0)
    monkeypatch.setattr(rtu, "REPEAT_CHARACTERS", 0)
    rates = {"duplicate": 0.3, "exception": 0.3}  # what was refused is asked for again in halves of the same length
    world = scenario(serial=rates, serial_meters=4, quantities=6, interval="10 s")
    assert "value" in violated(0.2, world)


def test_decrease_a_counter_that_goes_back_unmarked(monkeypatch):
    monkeypatch.setattr(Judge, "__call__", lambda _, sample: sample)
    assert "decrease" in violated(0.2, scenario(["meter_reset,100,1 s,1 s"]))


def test_decrease_a_counter_that_goes_back_across_a_restart(monkeypatch):
    world = scenario(["meter_reset,300,1 s,1 s", "agent_killed,500,1 s,1 s"])
    assert violated(0.1, world) == set()
    monkeypatch.setattr(process, "last_counters", lambda *_: {})
    assert "decrease" in violated(0.1, world)


def test_clock_a_jump_that_nothing_tells(monkeypatch):
    monkeypatch.setattr(recorder.Recorder, "_clock_changed", lambda *_: None)
    assert "clock" in violated(0.2, scenario(["clock_steps,100,1 s,1 s"]))


def test_bounds_a_window_without_an_end(monkeypatch):
    monkeypatch.setattr(upload.Window, "add", lambda self, end, _now_s: setattr(self, "sent", end))
    assert "bounds" in violated(0.2, scenario(["headend_killed,100,30 min,30 min"], batch_interval="10 s"))


def test_bounds_a_disk_that_fills(monkeypatch):
    monkeypatch.setattr(watch, "DISK_BASE", 1000)
    monkeypatch.setattr(watch, "DISK_PER_ENTRY", 1)
    assert "bounds" in violated(0.01, scenario())


def test_bounds_an_agent_that_keeps_every_reading(monkeypatch):
    log = BusPoller._log

    def hoarding(self, meter, group, sample):
        self.__dict__.setdefault("kept", []).append(sample)
        log(self, meter, group, sample)

    monkeypatch.setattr(BusPoller, "_log", hoarding)
    found = simulate(1, 0.2, scenario(interval="10 s")).violations
    assert [violation.invariant for violation in found] == ["bounds"]
    assert "gw-0 holds" in found[0].text


def test_bounds_a_headend_that_keeps_every_batch(monkeypatch):
    process = Ledger.process

    def hoarding(self, messages):
        self.__dict__.setdefault("kept", []).extend(messages)
        return process(self, messages)

    monkeypatch.setattr(Ledger, "process", hoarding)
    found = simulate(1, 0.2, scenario(batch_interval="60 s")).violations
    assert [violation.invariant for violation in found] == ["bounds"]
    assert "headend holds" in found[0].text


def test_resumed_a_disk_that_is_never_asked_again(monkeypatch):
    keep_room = recorder.Recorder._keep_room

    async def unforgiving(self):
        if not self.stalled:
            await keep_room(self)

    monkeypatch.setattr(recorder.Recorder, "_keep_room", unforgiving)
    assert "resumed" in violated(0.2, scenario(["disk_full,100,3 min,5 min"]), seed=2)


def fearful(monkeypatch):
    """The check of a journal of some length finds damage that is not there, however often it looks."""
    check, calls = journal.Journal.check, []

    def afraid(self, **rest):
        if self.head and self.head.frontier.size > 60 and len(calls) < 2:
            calls.append(1)
            raise JournalDamagedError("it looks odd")
        return check(self, **rest)

    monkeypatch.setattr(journal.Journal, "check", afraid)


def test_epoch_a_journal_that_is_replaced_although_nothing_is_wrong(monkeypatch):
    fearful(monkeypatch)
    assert "epoch" in violated(0.2, scenario(["agent_killed,100,1 s,1 s"]))


def test_lost_a_salvage_that_is_careless(monkeypatch):
    """Reads failed, all is there, and some of it is left behind."""
    adopt = journal.Journal.adopt_segments
    monkeypatch.setattr(journal.Journal, "adopt_segments", lambda self, epoch, some: adopt(self, epoch, some[:-1]))
    fearful(monkeypatch)
    world = scenario(["disk_read_fails,500,1 min,1 min", "agent_killed,100,1 s,1 s"])
    assert violated(0.2, world) & {"lost", "delivered"}


def test_decrease_that_is_not_logged_and_then_forgotten(monkeypatch):
    world = scenario(["meter_reset,200,1 s,1 s", "disk_full,100,3 min,5 min"])
    assert violated(0.3, world) == set()
    monkeypatch.setattr(Judge, "left_out", lambda _: None)
    assert "decrease" in violated(0.3, world)


def test_refused_a_batch_that_is_damaged(monkeypatch):
    encode = upload.encode_batch
    monkeypatch.setattr(upload, "encode_batch", lambda **parts: encode(**parts)[:-1] + b"\x00")
    assert violated(0.05, scenario()) & {"refused", "delivered"}


def test_stopped_an_agent_that_stumbles(monkeypatch):
    def stumble(*_):
        raise KeyError("a bug")

    monkeypatch.setattr(BusPoller, "_recovered", stumble)
    assert "stopped" in violated(0.2, scenario(["meter_dead,100,2 min,5 min"]))


def test_delivered_a_restored_headend_that_shows_its_old_receipt(monkeypatch):
    receipts = Ledger._receipts
    monkeypatch.setattr(Ledger, "_receipts", lambda self, wanted, **_: receipts(self, wanted))
    assert "delivered" in violated(0.5, scenario(["headend_restored,12,1 s,1 min"]))


def test_stopped_a_world_that_falls_apart_names_its_seed(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(watch.GatewayWatch, "compare", broken)
    outcome = simulate(7, 0.01, scenario())
    assert outcome.seed == 7
    assert [violation.invariant for violation in outcome.violations] == ["stopped"]
    assert outcome.recent


def test_a_kill_that_has_not_come_when_the_trouble_ends_does_not_come(monkeypatch):
    """Else it came at the stop, and what was not sent yet stayed in the journal."""
    calm, fuses = World._calm, []

    def looked(self):
        fuses.extend(gateway.service.life.fuse for gateway in self.gateways)
        calm(self)

    monkeypatch.setattr(World, "_calm", looked)
    for seed in range(1, 5):
        simulate(seed, 0.01, scenario(["agent_killed,4000,1 s,1 s"]))
    assert fuses == [0, 0, 0, 0]
