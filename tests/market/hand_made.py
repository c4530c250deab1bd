"""Hand-made gateways for the market's tests: they sign bids and confirmations, and log readings at a real head-end."""

import apsw
from energybid.bidding.curve import Step
from energybid.core.cose import PrivateKey
from energybid.core.entries import Declaration, Epoch, Reading, Start
from energybid.core.log import Log
from energybid.core.ports import Message
from energybid.core.quantities import Obis
from energybid.core.tree import Frontier
from energybid.headend.ledger import Ledger, Registration
from energybid.headend.store import Store
from energybid.simulator.market.terms import Member
from energybid.sync import market
from energybid.sync.batch import encode_batch
from energybid.sync.market import Award, Bid, Conduct, Confirmation
from energybid.sync.topics import topics_for

MARKET = "demo/power"
MARKET_KEY = PrivateKey.from_entropy(bytes(range(100, 148)))
HEADEND_KEY = PrivateKey.from_entropy(bytes(range(60, 108)))
IMPORT, EXPORT = Obis.parse("1-0:1.8.0").code, Obis.parse("1-0:2.8.0").code
STEPS = (Step(6_500, 2_000, divisible=True), Step(5_500, 1_000, divisible=False))


class Gateway:
    """One that bids by hand."""

    def __init__(self, number):
        self.tenant, self.name = "demo", f"gw-{number}"
        self.origin = f"demo/gw-{number}"
        self.topics = topics_for(self.tenant, self.name)
        self.key = PrivateKey.from_entropy(bytes([number]) * 48)
        self.log_key = PrivateKey.from_entropy(bytes([number + 100]) * 48)
        self.awards, self.statements = [], []

    @property
    def member(self):
        return Member(
            origin=self.origin, key=self.key.public, topics=self.topics, meter="house", imports=IMPORT, exports=EXPORT
        )  # fmt: skip

    def bid(self, announced, *, version=1, steps=STEPS, floor_w=-1_000, schedule_w=1_000, key=None, **given):
        """A bid as it comes to the market."""
        made = market.told(market.Round, announced)
        bid = Bid(
            MARKET, made.number, self.origin, market.digest(announced), version, made.time_ms, made.begins_ms,
            schedule_w, floor_w, tuple(tuple(step) for step in steps),
        )  # fmt: skip
        return self.sent("bid", market.sign(bid._replace(**given), key or self.key))

    def confirmation(self, award, at_ms, **given):
        said = market.told(Award, award)
        done = Confirmation(*said[:3], market.digest(award), at_ms, Conduct.FOLLOWED, "-")
        return self.sent("dispatch", market.sign(done._replace(**given), self.key))

    def sent(self, kind, payload, *, retained=False):
        return Message(getattr(self.topics, kind), payload, retained)

    # ------------------------------------------------------------ readings

    def log(self, path, begins_ms, registers, *, every_ms=10_000):
        """Have a head-end hold readings of import and export, Wh, one after another."""
        log = Log(
            origin=self.origin, epoch=bytes([len(self.name)]) * 16, secret=b"s" * 32, signer=self.log_key,
            frontier=Frontier(), counter=0,
        )  # fmt: skip
        quantities = ((IMPORT, "Wh", 0, True), (EXPORT, "Wh", 0, True))
        entries = [
            Epoch(self.origin, begins_ms, None),
            Start(bytes(16), begins_ms, 0, 2, "1", bytes(32)),
            Declaration("house", "p", bytes(32), None, ((every_ms, quantities),)),
            *(
                Reading(2, 0, begins_ms + n * every_ms, 100, 2, 1, n * every_ms, values, None)
                for n, values in enumerate(registers)
            ),
        ]
        for entry in entries:
            log.append(entry)
        signed = log.checkpoint(begins_ms + len(registers) * every_ms, 2)
        frame = encode_batch(first=0, entries=entries, checkpoint=signed, salts=log.salts)
        store = Store.open(apsw.Connection(str(path)), str(path))
        ledger = Ledger(store, HEADEND_KEY, HEADEND_KEY.public, lambda: signed.checkpoint.time_ms * 1_000_000)
        ledger.register([Registration(self.tenant, self.name, (self.log_key.public,))])
        assert ledger.process([Message(self.topics.log, frame, retained=False)])
        store.close()
