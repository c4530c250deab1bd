"""A gateway that bids, in virtual time: the real bidder, journal, recorder and uploader.

The market is the test: it publishes what it likes and sees what the broker is given. The planner offers a fixed curve,
the dispatcher writes down what it is told to follow.
"""

import asyncio
import random

import apsw
from energybid.agent.journal import Journal
from energybid.agent.market.bidder import Bidder
from energybid.agent.market.floor import Site
from energybid.agent.market.plan import MarketPlan
from energybid.agent.market.ports import Followed, Planned, Slot, Weather
from energybid.agent.opening import open_recorder
from energybid.agent.plan import UplinkPlan
from energybid.agent.rounds import Known
from energybid.agent.upload import Uploader
from energybid.bidding.curve import Curve, Step
from energybid.core.cose import PrivateKey
from energybid.core.entries import MarketKind, MarketMessage
from energybid.core.ports import UplinkSettings
from energybid.simulator.virtual import EPOCH_NS, Life, VirtualClock, VirtualOffload
from energybid.simulator.world.broker import Broker
from energybid.sync import market
from energybid.sync.market import Award, Bid, Conduct, Confirmation, PriceCurve, Prices, Pricing, Round, Statement
from energybid.sync.topics import market_topics, topics_for
from gateways import HEADEND, KEY, virtual_platform

MARKET, ORIGIN = "t/power", "t/g"
MARKET_KEY = PrivateKey.from_entropy(bytes(range(100, 148)))
BIDS_KEY = PrivateKey.from_entropy(bytes(range(48)))
OTHER_KEY = PrivateKey.from_entropy(b"another." * 6)
TOPICS, EVERY = topics_for("t", "g"), market_topics(MARKET)
T0 = EPOCH_NS // 1_000_000
S, MINUTE = 1000, 60_000
PLAN = MarketPlan(
    name=MARKET,
    key=MARKET_KEY.public.pem(),
    bids_key=BIDS_KEY.pem(),
    meter="house",
    net=(),
    imported=None,
    exported=None,
    import_limit_w=10_000,
    export_limit_w=10_000,
    timezone="UTC",
    assets=(),
)
CURVE = Curve(-2_000, (Step(9_000, 4_000, divisible=True), Step(8_000, 2_000, divisible=False)))
SCHEDULE_W = 1_000


def split(net_w):
    """A battery takes what a base of 500 W leaves, up to 1,500 W; a heat pump the rest."""
    battery = min(net_w - 500, 1_500)
    return {"battery": battery, "pump": net_w - 500 - battery}


class Planner:
    def __init__(self):
        self.curve, self.schedule_w, self.split = CURVE, SCHEDULE_W, split
        self.fault = None
        self.calls, self.learned, self.loads, self.weathers = [], [], [], []
        self.memory = {}

    def prices(self, made):
        self.learned.append(made)

    def load(self, at_ms, net_w, controlled_w):
        self.loads.append((at_ms, net_w, controlled_w))

    def weather(self, at_ms, made):
        self.weathers.append((at_ms, made))

    def roll_back(self, model):
        if model == "nothing":
            raise ValueError("there is no model 'nothing'")
        self.memory["loads/00"] = b"rolled back"
        return model or "regression", 2

    def plan(self, made, assets, base_w, now_ms):
        self.calls.append((made.number, [name for name, _ in assets], base_w, now_ms))
        if self.fault:
            raise self.fault
        all_w = {"pump": 1_234}
        return Planned(
            curve=self.curve, schedule_w=self.schedule_w, split=self.split, all_w=all_w, facts={"base_w": base_w}
        )

    def state(self):
        return dict(self.memory)

    def restore(self, state):
        self.memory = dict(state)


class Assets:
    def __init__(self):
        self.names = ["battery", "pump"]
        self.fault = None
        self.recalled = 0
        self.told = Slot(700, 200)
        self.sky = Weather({}, {})

    async def recall(self):
        self.recalled += 1

    async def run(self):
        await asyncio.Event().wait()

    def now(self, made_at_ms, step_h):
        if self.fault:
            raise self.fault
        return [(name, object()) for name in self.names]

    def base_w(self):
        return 500

    def slot(self, begins_ms, ends_ms):
        return self.told

    def foreseen(self, begins_ms, all_w):
        self.expected = begins_ms, all_w

    def weather(self, begins_ms, ends_ms):
        return self.sky

    def status(self):
        return [{"name": name, "power_w": None, "command_w": -500, "out": ""} for name in self.names]


class Dispatcher:
    """Follows to the end, unless ``outcome`` or ``fault`` says otherwise; each move is (seconds, W, split, rank)."""

    def __init__(self, clock):
        self._now_ms = lambda: clock.now_ns() // 1_000_000
        self.moves, self.over = [], []
        self.fault = self.stuck = None
        self.outcome, self.after_s = Followed(Conduct.FOLLOWED), None

    async def follow(self, target_w, split, begins_ms, ends_ms, rank):
        self.moves.append((second(), target_w, dict(split), rank.name))
        try:
            if self.fault:
                raise self.fault
            if self.stuck:
                await asyncio.Event().wait()
            award = rank.name == "MARKET"
            if award and self.after_s is not None:
                await asyncio.sleep(self.after_s)
            else:
                await asyncio.sleep(max(0, ends_ms - self._now_ms()) / 1000)
            return self.outcome if award else Followed(Conduct.FOLLOWED)
        finally:
            self.over.append((second(), target_w, rank.name))

    @property
    def brief(self):
        return [(at, target_w, rank) for at, target_w, _, rank in self.moves]


def second():
    return round(asyncio.get_running_loop().time(), 1)


class Scene:
    """One gateway and its market. Must be made in a virtual loop."""

    def __init__(self, path, *, plan=PLAN):
        self.path = path
        self.clock = VirtualClock()
        self.sent = []
        """(seconds, topic, payload) of what the gateway published, but for its log and its status."""
        self.statuses, self.uncommitted = [], []
        self.broker = Broker(random.Random(5), self._published, lambda *_: None)
        self.plan = plan
        self.planner, self.assets, self.dispatcher = Planner(), Assets(), Dispatcher(self.clock)
        self.think_s = (0.01, 0.02)
        self.counters = {Award: 0, Statement: 0}
        self.life = self.bidder = self.uploader = self.recorder = None
        self.ended = []
        self.on_platform = {}

    def _published(self, client, topic, payload):
        if client == "gateway" and topic == TOPICS.status:
            self.statuses.append(payload)
        elif client == "gateway" and topic != TOPICS.log:
            self.sent.append((second(), topic, payload))
            if payload not in [entry.message for entry in self.entries]:
                self.uncommitted.append(payload)

    # ------------------------------------------------------------ the gateway

    async def start(self):
        """Switch the agent on; returns when it takes messages."""
        self.life = Life()
        self.up = asyncio.Event()
        task = asyncio.get_running_loop().create_task(self._live(), context=self.life.context)
        self.task = task
        await self.up.wait()
        await asyncio.sleep(1)
        return self

    async def _live(self):
        think = VirtualOffload(random.Random(3), delay_s=self.think_s)
        platform = virtual_platform(
            self.clock, connect=self.broker.connect, seed=11, **({"think": think} | self.on_platform)
        )
        self.think = think
        self.recorder = await open_recorder(
            platform, str(self.path), ORIGIN, KEY, commit_interval_s=5.0, keep_s=30 * 86_400.0
        )
        self.recorder.started("1.0", bytes(32))
        settings = UplinkSettings(host="broker", port=1883, client_id="gateway")
        uplink = UplinkPlan(settings=settings, batch_interval_s=60.0, window=8, receipt_timeout_s=3600.0)
        self.uploader = Uploader(platform, self.recorder, uplink, TOPICS, HEADEND.public)
        site = Site(self.planner, self.assets, self.dispatcher)
        self.bidder = Bidder(platform, self.recorder, self.plan, ORIGIN, site, self.uploader.publish)
        self.bidder.attach(self.uploader)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.recorder.run())
                tasks.create_task(self.uploader.run())
                tasks.create_task(self.bidder.run())
                self.up.set()
        except Exception as error:
            self.ended.append(error)
            raise

    def kill(self):
        """Kill -9; the disk keeps what was committed."""
        asyncio.get_running_loop().end(self.life)

    async def stop(self):
        """As SIGTERM does."""
        await self.bidder.close()
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)
        await self.recorder.close()

    async def restart(self, down_s=0.5):
        self.kill()
        await asyncio.sleep(down_s)
        self.planner, self.assets = Planner(), Assets()
        self.dispatcher = Dispatcher(self.clock)
        return await self.start()

    async def until(self, second):
        """Wait until so many seconds after the begin of the scene."""
        await asyncio.sleep(second - asyncio.get_running_loop().time())

    @property
    def rounds(self):
        return self.bidder._session._floor.rounds

    def known(self, number=1) -> Known:
        return self.rounds.known[number]

    def state(self, number=1):
        return self.known(number).state.value

    @property
    def kept(self):
        """(kind, reason) of the market's messages in the journal's file."""
        return [(entry.kind, entry.reason) for entry in self.entries]

    @property
    def entries(self):
        journal = Journal(apsw.Connection(str(self.path)), str(self.path), check=False)
        found = [
            entry
            for epoch in journal.epochs()
            for segment in journal.segments(epoch.number, 0)
            for entry in segment.entries()
            if isinstance(entry, MarketMessage)
        ]
        journal.close()
        return found

    @property
    def refused(self):
        """Reasons in the log."""
        return [reason for _, reason in self.kept if reason]

    # ------------------------------------------------------------ the market

    def round(self, number=1, *, at_s=None, **changes):
        """Announce a round: the gate a minute from now, the interval of a minute another minute later."""
        now_ms = self.clock.now_ns() // 1_000_000 if at_s is None else T0 + at_s * S
        made = Round(
            MARKET, number, now_ms, now_ms + MINUTE, now_ms + 2 * MINUTE, MINUTE,
            "USD", 2, -50_000, 100_000, Pricing.UNIFORM, "none",
        )._replace(**changes)  # fmt: skip
        self.publish(EVERY.round, market.sign(made, MARKET_KEY), retain=True)
        return made

    def publish(self, topic, payload, *, retain=False):
        self.broker.take("market", topic, payload, retain=retain)

    def bids(self, number=1):
        """The bids that reached the broker, as (bid, message)."""
        found = [(market.read(Bid, p, BIDS_KEY.public), p) for _, topic, p in self.sent if topic == TOPICS.bid]
        return [pair for pair in found if pair[0].number == number]

    def award(self, number=1, *, send=True, key=MARKET_KEY, retain=False, **changes):
        message = self.bids(number)[-1][1]
        self.counters[Award] += 1
        now_ms = self.clock.now_ns() // 1_000_000
        fields = Award(MARKET, number, ORIGIN, market.digest(message), self.counters[Award], now_ms, 0, 9_000, 0)
        signed = market.sign(fields._replace(**changes), key)
        if send:
            self.publish(TOPICS.award, signed, retain=retain)
        return signed

    def state_money(self, number=1, *, send=True, **changes):
        self.counters[Statement] += 1
        now_ms = self.clock.now_ns() // 1_000_000
        head = MARKET, number, ORIGIN, self.known(number).award_hash
        fields = Statement(*head, self.counters[Statement], now_ms, 17, 0, 153, bytes(32))
        signed = market.sign(fields._replace(**changes), MARKET_KEY)
        if send:
            self.publish(TOPICS.statement, signed)
        return signed

    def prices(self, counter=1, *, curve=PriceCurve.DAY_AHEAD, key=MARKET_KEY, **changes):
        now_ms = self.clock.now_ns() // 1_000_000
        begins_ms = now_ms - now_ms % (24 * 60 * MINUTE)
        made = Prices(MARKET, curve, counter, now_ms, "USD", 2, begins_ms, 60 * MINUTE, tuple(range(4_000, 4_048)))
        self.publish(EVERY.day_ahead, market.sign(made._replace(**changes), key), retain=True)

    @property
    def confirmations(self):
        return [market.read(Confirmation, p, BIDS_KEY.public) for _, topic, p in self.sent if topic == TOPICS.dispatch]


KINDS = {number: name for name, number in vars(MarketKind).items() if name.isupper()}


def play(path, scene, **options):
    """Run a coroutine function of a scene in virtual time, from its first start."""
    from energybid.simulator.virtual import run

    async def main():
        made = Scene(path, **options)
        await made.start()
        return await scene(made)

    return run(main)
