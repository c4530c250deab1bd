"""A gateway's journal, its utility's database and a market, grown together in virtual time by the product."""

import apsw
from energybid.agent.growing import Commit
from energybid.agent.journal import Journal
from energybid.agent.rows import Acknowledged
from energybid.bidding.baseline_rules import text_of
from energybid.core.cose import ES256, PrivateKey
from energybid.core.entries import Clock, Declaration, Epoch, MarketKind, MarketMessage, MarketReason, Reading, Start
from energybid.core.evidence import Receipt, sign_receipt
from energybid.core.log import Log
from energybid.core.ports import Message
from energybid.core.quantities import ClockState, Status
from energybid.core.tree import Frontier
from energybid.headend.history import histories
from energybid.headend.ledger import Ledger, Registration
from energybid.headend.store import Store
from energybid.sync import market
from energybid.sync.batch import encode_batch
from energybid.sync.market import Award, Bid, Conduct, Confirmation, Pricing, Round, Verdict
from energybid.sync.settling import EXPORT, IMPORT, Logs, Messages, Ready, usual_inputs
from energybid.sync.topics import topics_for

KEYS = {
    "market": PrivateKey.from_entropy(b"market.." * 6),
    "gateway": PrivateKey.from_entropy(b"bids...." * 6),
    "log": PrivateKey.from_entropy(b"gateway." * 6),
    "headend": PrivateKey.from_entropy(b"headend." * 6, ES256),
}
MARKET, ORIGIN = "demo/power", "demo/site"
MIDNIGHT_MS = 1_790_208_000_000
"""2026-09-24T00:00:00Z."""
STEP_MS, QUARTER_MS = 150_000, 900_000
METER = ((STEP_MS, ((IMPORT, "Wh", 0, True), (EXPORT, "Wh", 0, True))), (STEP_MS, ((bytes(6), "W", 0, False),)))


class Site:
    """Time passes in steps, in each of which the meter is read, the log committed and sent."""

    def __init__(self, folder, programme="meter-before-meter-after") -> None:
        self.folder, self.programme = folder, programme
        self.path, self.stored = folder / "journal.db", folder / "headend.db"
        for role, key in KEYS.items():
            (folder / f"{role}.pub.pem").write_bytes(key.public.pem())
        self.journal = Journal(apsw.Connection(str(self.path)), str(self.path))
        self.store = Store.open(apsw.Connection(str(self.stored)), str(self.stored))
        self.ledger = Ledger(
            self.store, KEYS["headend"], KEYS["headend"].public, lambda: (self.now_ms + 500) * 1_000_000
        )  # fmt: skip
        self.ledger.register([Registration(*ORIGIN.split("/"), (KEYS["log"].public,))])
        self.now_ms, self.net_w, self.registers = MIDNIGHT_MS, 2_000, [500_000.0, 1_000.0]
        self.logs, self.online, self.counter = Logs("house"), True, 0
        self.unsent: list[Message] = []
        self.slow_ms, self.marks = 0, {}
        """By how much the gateway's clock, which nobody has set, is slow; statuses of what is read, by time."""
        self.begin(b"e" * 16)

    def begin(self, epoch: bytes) -> None:
        counter = self.journal.begin_epoch(id_=epoch, origin=ORIGIN, secret=epoch * 2).counter
        self.log = Log(
            origin=ORIGIN, epoch=epoch, secret=epoch * 2, signer=KEYS["log"], frontier=Frontier(), counter=counter
        )  # fmt: skip
        start = Start(bytes(16), self.now_ms, self.now_ms - MIDNIGHT_MS, 0, "v", bytes(32))
        other = Declaration("cellar", "acme", bytes(32), "SN 9", (METER[0],))
        self.commit(
            [Epoch(ORIGIN, self.now_ms, None), start, other, Declaration("house", "acme", bytes(32), "1", METER)]
        )

    def commit(self, entries: list) -> None:
        before, first = self.log.peaks, self.log.size
        for entry in entries:
            self.log.append(entry)
        checkpoint = self.log.checkpoint(self.now_ms, 2)
        self.journal.commit(Commit(entries, checkpoint, before, self.log.peaks, None))
        frame = encode_batch(first=first, entries=entries, checkpoint=checkpoint, salts=self.log.salts)
        self.unsent.append(Message(topics_for(*ORIGIN.split("/")).log, frame, retained=False))
        if self.online:
            self.ledger.process(self.unsent)
            self.unsent.clear()

    def acknowledge(self) -> None:
        """The last receipt reaches the gateway."""
        number = self.journal.head.epoch.number
        root = self.journal.root_at(number, self.log.size)
        receipt = Receipt(ORIGIN, self.log.epoch, self.log.size, root, self.now_ms + 500)
        self.journal.acknowledge(Acknowledged(number, self.log.size, sign_receipt(receipt, KEYS["headend"])))

    def run(self, until_ms: int, *, net_w: int | None = None) -> None:
        self.net_w = self.net_w if net_w is None else net_w
        while self.now_ms < until_ms:
            self.now_ms += STEP_MS
            self.registers[self.net_w < 0] += abs(self.net_w) * STEP_MS / 3_600_000
            clock = ClockState.UNSYNCHRONISED if self.slow_ms else ClockState.SYNCHRONISED
            moment = (self.now_ms - 40 - self.slow_ms, 120, clock, 1, self.now_ms - 40 - MIDNIGHT_MS)
            mark = self.marks.get(self.now_ms)
            marks = None if mark is None else (mark, Status.OK)
            self.registers[0] += 100_000 if mark in {Status.RESTARTED, Status.ROLLED_OVER} else 0
            imported, exported = map(int, self.registers)
            self.commit([
                Reading(2, 0, *moment, (7, 7), None), Reading(3, 0, *moment, (imported, exported), marks),
                Reading(3, 1, *moment, (self.net_w,), None),
            ])  # fmt: skip

    def set_clock(self) -> None:
        shown_ms, self.slow_ms = self.now_ms - self.slow_ms, 0
        self.commit([Clock(1, self.now_ms - MIDNIGHT_MS, shown_ms, self.now_ms, ClockState.SYNCHRONISED)])

    def told(self, kind: int, message: bytes, reason: int = MarketReason.NONE) -> bytes:
        """A message comes, or is about to go: it is an entry of the log."""
        self.commit([MarketMessage(kind, reason, message, 0, self.now_ms, 2, 1, self.now_ms - MIDNIGHT_MS)])
        return message

    # ------------------------------------------------------------ a round

    def announced(self, number: int, begins_ms: int) -> bytes:
        self.made = Round(
            MARKET, number, self.now_ms, begins_ms - STEP_MS, begins_ms, QUARTER_MS, "EUR", 2, -50_000, 400_000,
            Pricing.UNIFORM, self.programme,
        )  # fmt: skip
        return self.told(MarketKind.ROUND, market.sign(self.made, KEYS["market"]))

    def bidden(self, announced: bytes, version: int = 1) -> bytes:
        self.bid = Bid(
            MARKET, self.made.number, ORIGIN, market.digest(announced), version, self.now_ms, self.made.begins_ms,
            2_000, -1_000, ((30_000, 600, True), (10_000, 2_400, True)),
        )  # fmt: skip
        return self.told(MarketKind.BID, market.sign(self.bid, KEYS["gateway"]))

    def awarded(self, bidden: bytes, net_w: int, *, verdict: int = Verdict.AWARDED, log: bool = True) -> bytes:
        ticks = 20_000 if verdict == Verdict.AWARDED else 0
        number = self.made.number
        self.award = Award(
            MARKET, number, ORIGIN, market.digest(bidden), number, self.now_ms, verdict, ticks, net_w
        )  # fmt: skip
        message = market.sign(self.award, KEYS["market"])
        return self.told(MarketKind.AWARD, message) if log else message

    def confirmed(self, awarded: bytes) -> bytes:
        hashed = market.digest(awarded)
        done = Confirmation(MARKET, self.made.number, ORIGIN, hashed, self.now_ms, Conduct.FOLLOWED, "ok")
        return self.told(MarketKind.CONFIRMATION, market.sign(done, KEYS["gateway"]))

    def settled(self):
        """What the market finds in the head-end's database, as it is now."""
        self.logs.read(histories(apsw.Connection(str(self.stored)), str(self.stored)))
        asked = usual_inputs(self.made, "house", programme=text_of(self.made.programme))
        return self.logs.settle(self.made, self.bid, self.award, asked)

    def stated(self, awarded: bytes, ready: Ready, *, more: int = 0, log: bool = True) -> bytes:
        self.counter += 1
        statement = ready.statement(awarded, counter=self.counter, time_ms=self.now_ms)
        signed = market.sign(statement._replace(amount=statement.amount + more), KEYS["market"])
        return self.told(MarketKind.STATEMENT, signed) if log else signed

    def round(self, number: int, begins_ms: int, *, net_w: int) -> Messages:
        """All of one, and one step more."""
        self.run(begins_ms - 3 * STEP_MS, net_w=2_000)
        announced = self.announced(number, begins_ms)
        self.run(begins_ms - 2 * STEP_MS)
        bidden = self.bidden(announced)
        self.run(begins_ms - STEP_MS)
        awarded = self.awarded(bidden, net_w)
        self.run(begins_ms)
        self.run(begins_ms + QUARTER_MS, net_w=net_w)
        done = self.confirmed(awarded)
        self.run(begins_ms + QUARTER_MS + STEP_MS, net_w=2_000)
        return Messages(announced, bidden, awarded, done, self.stated(awarded, self.settled()))

    def close(self) -> None:
        self.journal.close()
        self.store.close()
