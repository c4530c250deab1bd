"""scenario.toml: what a world is made of, and what befalls it. Imported by commands and tests only.

Without a file, ``Scenario()`` is the small world with every fault at its usual rate, ``large()`` the large one.
"""

from pathlib import Path
from typing import Self

from pydantic import Field, model_validator

from energybid.core.errors import ConfigurationError
from energybid.core.settings import Duration, Settings, read_toml
from energybid.simulator.config import FaultsModel, Rate

PROFILES_TCP = ["schneider-iem3155", "carlo-gavazzi-em340"]
PROFILES_SERIAL = ["eastron-sdm630", "abb-b23"]


class Happening(Settings):
    """One kind of mishap, for each thing that can suffer it."""

    per_day: float = Field(0.0, ge=0, le=10_000)
    """How often, on average; when is left to chance."""
    least: Duration = Field(1.0, ge=0)
    """How long it lasts at least."""
    most: Duration = Field(60.0, ge=0)
    """And at most."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.least > self.most:
            raise ValueError("least is more than most")
        return self


def _often(per_day: float, least: str = "1 s", most: str = "1 s") -> Happening:
    return Happening.model_validate({"per_day": per_day, "least": least, "most": most})


def _rates(**rates: float) -> FaultsModel:
    return FaultsModel.model_validate(rates)


SHARES = ("tcp", "serial", "market_lies")
"""Faults that are a table of shares."""
RATES = ("cut", "broker_duplicates", "broker_drops", "round_cut_off", "round_killed", "round_clock_steps")
"""Faults that are one share."""


class Lies(Settings):
    """What comes to a gateway beside its market's messages, or instead of them: shares of awards and statements."""

    duplicate: Rate = 0.0
    """The same message once more."""
    replayed: Rate = 0.0
    """One of the last 32, hours later."""
    foreign: Rate = 0.0
    """The same for another gateway, or of another market; signed by the market's key."""
    flipped: Rate = 0.0
    """One bit of it is another."""
    forged: Rate = 0.0
    """The same signed by another key."""
    retained: Rate = 0.0
    """The same as a retained message of the broker."""
    late: Rate = 0.0
    """It comes so late that its time is over: with the begin of the interval that it is about."""
    generous: Rate = 0.0
    """An award of more than was offered, signed by the market's key."""
    long: Rate = 0.0
    """10,000 bytes."""

    def rates(self) -> dict[str, float]:
        """Those that happen."""
        return {name: rate for name in type(self).model_fields if (rate := getattr(self, name))}


LIES = 0.03
"""Each of them befalls so many of the market's messages."""


class Faults(Settings):
    """``[faults]``: the defaults are the preset "all"."""

    tcp: FaultsModel = _rates(
        no_reply=0.01, exception=0.005, wrong_unit=0.005, wrong_transaction=0.005, wrong_length=0.005,
        late=0.01, duplicate=0.01, garbage=0.002, overtaken=0.1,
    )  # fmt: skip
    """Shares of the answers on TCP buses. No half frames: MBAP has no checksum, so a peer that sends half an answer and
    goes on with the next one forges a value that nobody can tell from a true one."""
    serial: FaultsModel = _rates(
        no_reply=0.01, exception=0.005, wrong_unit=0.005, wrong_length=0.005, crc_error=0.02, half_frame=0.01,
        late=0.01, duplicate=0.01, garbage=0.01,
    )  # fmt: skip
    """Shares of the answers on serial lines."""
    cut: Rate = 0.02
    """Share of TCP answers that arrive in two pieces."""
    meter_dead: Happening = _often(2, "10 s", "1 h")
    """Says nothing."""
    meter_reset: Happening = _often(1, "10 s", "2 min")
    """Without power for that time; its counters begin at 0 again."""
    meter_rollover: Happening = _often(1)
    """Its counters come near their end and roll over within the hour."""
    meter_swap: Happening = _often(0.5, "1 min", "20 min")
    """Somebody hangs another one of the same model there."""
    connection_reset: Happening = _often(4)
    """The TCP connection is reset."""
    host_away: Happening = _often(2, "5 s", "10 min")
    """The host of a TCP bus refuses connections."""
    host_silent: Happening = _often(1, "5 s", "10 min")
    """The host of a TCP bus does not answer at all."""
    adapter_unplugged: Happening = _often(2, "2 s", "20 min")
    """The serial adapter vanishes, and returns under another name behind the same /dev/serial/by-id link."""
    broker_cuts: Happening = _often(6)
    """The broker drops all connections."""
    broker_away: Happening = _often(2, "5 s", "2 h")
    """The broker is stopped; its sessions last."""
    broker_forgets: Happening = _often(1, "1 s", "5 min")
    """The broker is stopped and has lost sessions, queues and retained messages."""
    broker_shuffles: Happening = _often(3, "30 s", "10 min")
    """The head-end is away for so long, and its queued batches come in another order."""
    broker_duplicates: Rate = 0.02
    """Share of messages delivered twice."""
    broker_drops: Rate = 0.002
    """Share of messages after which the sender's connection is lost before it is told."""
    headend_killed: Happening = _often(2, "1 s", "30 min")
    """Killed, and started again after that time."""
    headend_crash_before_commit: Happening = _often(2)
    headend_crash_after_commit: Happening = _often(2)
    """Its transaction is durable, the receipt is neither signed nor sent."""
    headend_power_cut: Happening = _often(1)
    """In the middle of its writes; what was not synced is dropped, kept or torn."""
    headend_lost: Happening = _often(0.3, "1 min", "1 h")
    """Its database is gone for good."""
    headend_restored: Happening = _often(0.7, "1 min", "1 h")
    """It is restored from a copy that is some hours old."""
    headend_disk_full: Happening = _often(0.5, "10 s", "10 min")
    headend_disk_slow: Happening = _often(0.5, "1 min", "20 min")
    """Every call takes up to ten seconds."""
    headend_disk_fails: Happening = _often(1, "10 min", "1 h")
    """EIO at one to three commits within that time."""
    clock_steps: Happening = _often(2)
    """By up to twelve hours, in either direction."""
    clock_drifts: Happening = _often(2, "1 h", "6 h")
    """By up to 2,000 ppm for that time; then it is synchronised again."""
    clock_unsynchronised: Happening = _often(2, "10 min", "4 h")
    """It holds over, then says that it is not synchronised at all."""
    agent_killed: Happening = _often(6)
    """kill -9 at any await."""
    gateway_power_cut: Happening = _often(2, "1 min", "2 h")
    """Within a write or between; begins again in 1970 and is synchronised after that time."""
    disk_slow: Happening = _often(2, "1 min", "20 min")
    """Every call takes up to ten seconds."""
    disk_full: Happening = _often(1, "10 s", "5 min")
    """Half the time to the last byte, whatever is given back; else giving up the ballast helps."""
    disk_read_only: Happening = _often(1, "10 s", "5 min")
    disk_sync_fails: Happening = _often(2, "1 min", "10 min")
    """EIO at one to three commits within that time."""
    disk_read_fails: Happening = _often(0.5, "1 h", "6 h")
    """EIO at one read within that time; nothing is wrong with what is stored."""
    journal_damaged: Happening = _often(0.5)
    """A bit, some bytes or a page of the journal's file is changed, while the agent runs or after a kill."""
    market_killed: Happening = _often(3, "1 s", "20 min")
    """Killed, and started again after that time."""
    market_crash_before_commit: Happening = _often(2)
    market_crash_after_commit: Happening = _often(2)
    """Its transaction is durable, and nothing of it was sent."""
    market_power_cut: Happening = _often(1)
    """In the middle of its writes; what was not synced is dropped, kept or torn."""
    market_lies: Lies = Lies(**dict.fromkeys(Lies.model_fields, LIES))
    asset_silent: Happening = _often(3, "10 s", "20 min")
    """Battery, or house meter, says nothing."""
    asset_disobeys: Happening = _often(3, "1 min", "20 min")
    """The battery takes numbers and does not follow them."""
    round_cut_off: Rate = 0.02
    """Share of the phases of rounds (to the gate, to the begin, to the end, to the statement) within which the
    gateway's connection is lost, for up to 20 minutes."""
    round_killed: Rate = 0.02
    """Share of the phases of rounds within which the agent is killed, and begins anew."""
    round_clock_steps: Rate = 0.01
    """Share of the phases of rounds within which the gateway's clock steps, by up to half an hour."""

    @classmethod
    def none(cls) -> Self:
        """Nothing at all goes wrong."""
        quiet = {name: {} if name in SHARES else {"per_day": 0.0} for name in cls.kinds()}
        return cls.model_validate(quiet | dict.fromkeys(RATES, 0.0))

    @classmethod
    def kinds(cls) -> list[str]:
        """Names of everything but the plain rates."""
        return [name for name in cls.model_fields if name not in RATES]

    @classmethod
    def chosen(cls, names: str) -> "Faults":
        """The preset ``all`` or ``none``, or only the faults named, at their usual rates.

        Args:
            names: Names of fields with commas between; a beginning such as ``headend`` takes all that begin so.

        Raises:
            ConfigurationError: A name that nothing has.
        """
        if names in {"all", "none"}:
            return cls() if names == "all" else cls.none()
        wanted = [name.strip() for name in names.split(",")]
        unknown = [name for name in wanted if not any(field.startswith(name) for field in cls.model_fields)]
        if unknown:
            raise ConfigurationError(
                [f"--faults: no fault {name!r}; there are all, none, {', '.join(cls.model_fields)}" for name in unknown]
            )
        usual, quiet = cls(), cls.none()
        return cls.model_construct(
            **{field: getattr(usual if field.startswith(tuple(wanted)) else quiet, field) for field in cls.model_fields}
        )

    def happenings(self) -> dict[str, Happening]:
        """Those that can happen, by name."""
        found = {name: getattr(self, name) for name in self.kinds()}
        return {name: h for name, h in found.items() if isinstance(h, Happening) and h.per_day > 0}


class Market(Settings):
    """``[market]``: the gateways have a house and a battery, and bid with it."""

    every: Duration = Field(900.0, ge=60, le=86400)
    """Rounds follow each other; each delivers for so long."""
    announce: Duration = Field(600.0, ge=1)
    """A round is announced so long before it begins,"""
    gate: Duration = Field(120.0, ge=1)
    """and takes bids until so long before it begins."""
    interval: Duration = Field(30.0, ge=1, le=60)
    """Between two polls of house and battery."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.gate >= self.announce:
            raise ValueError("gate is before the announcement")
        return self


class Scenario(Settings):
    """All of scenario.toml; the defaults are the small world."""

    gateways: int = Field(1, ge=1, le=16)
    tcp_meters: int = Field(2, ge=0, le=32)
    """On one TCP bus of each gateway."""
    serial_meters: int = Field(1, ge=0, le=32)
    """On one serial line of each gateway."""
    pipelined: Rate = 0.5
    """Share of the gateways that have several requests under way at once on their TCP bus.

    There no answer bears a wrong transaction number, which may be that of another one under way: nobody could tell it
    from a true one. Answers overtake one another instead."""
    in_flight: int = Field(4, ge=2, le=64)
    """Most requests under way at once on such a bus."""
    quantities: int = Field(4, ge=1, le=1024)
    """Of each meter at most, taken from all over its profile."""
    interval: Duration = Field(60.0, ge=1, le=3600)
    """Between two polls of a meter."""
    commit_interval: Duration = Field(30.0, ge=0, le=3600)
    batch_interval: Duration = Field(600.0, ge=0, le=3600)
    keep: Duration = Field(60 * 86400.0, ge=0)
    """Acknowledged history that stays on the gateways in any case; a head-end that loses more can not be refilled."""
    market: Market | None = None
    """None: the gateways only meter."""
    faults: Faults = Faults()

    @model_validator(mode="after")
    def _something_to_read(self) -> Self:
        if not self.tcp_meters + self.serial_meters:
            raise ValueError("a gateway needs a meter: tcp_meters, serial_meters")
        return self


def small(faults: Faults) -> Scenario:
    """Three meters on two buses, polled every 60 s."""
    return Scenario(faults=faults)


def large(faults: Faults) -> Scenario:
    """Ten meters on two buses, polled every 10 s."""
    sizes = {"tcp_meters": 6, "serial_meters": 4, "quantities": 6}
    times = {"interval": "10 s", "commit_interval": "10 s", "batch_interval": "60 s"}
    return Scenario.model_validate({**sizes, **times, "faults": faults})


def bidding(faults: Faults) -> Scenario:
    """Two meters on two buses, and a house with a battery that bids in rounds of 15 minutes."""
    sizes = {"tcp_meters": 1, "serial_meters": 1, "batch_interval": "2 min"}
    return Scenario.model_validate({**sizes, "market": {}, "faults": faults})


def load_scenario(path: Path) -> Scenario:
    """Read scenario.toml.

    Raises:
        ConfigurationError: Every fault in it.
    """
    return read_toml(path, Scenario)
