"""market.toml: its model, and the checked plan that the process runs. Imported by commands only."""

import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from math import gcd
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from energybid.bidding import baseline, baseline_rules
from energybid.bidding.baseline_rules import Programme
from energybid.bidding.curve import STEPS_MAX, TICKS_MAX
from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.errors import ConfigurationError
from energybid.core.ports import UplinkSettings
from energybid.core.quantities import Obis
from energybid.core.settings import Duration, Power, Settings, read_toml
from energybid.simulator.market.series import DAY_MS, HOUR_MS, MadeUp, Scaled, parse_csv
from energybid.simulator.market.terms import Member, Rest, Terms
from energybid.sync.bundle import EVENTS_MAX
from energybid.sync.market import DECIMALS_MAX, Pricing
from energybid.sync.settings import UplinkModel
from energybid.sync.topics import checked, market_topics, topics_for

GATEWAYS_MAX = 100_000
QUARTER_MS = 900_000
Name = Annotated[str, AfterValidator(checked)]
PathText = Annotated[str, Field(min_length=1, max_length=4096)]


def _decimal(value: object) -> object:
    """Exact, so never of a float."""
    if isinstance(value, str) and (match := _DECIMAL.fullmatch(value)):
        return Decimal(match[0])
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        return Decimal(value)
    raise ValueError('write money per MWh in quotes, such as "-500.00"')


_DECIMAL = re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
Money = Annotated[Decimal, BeforeValidator(_decimal), Field(ge=-10_000_000, le=10_000_000)]
"""Per MWh."""


def _market(name: str) -> str:
    market_topics(name)
    return name


def _obis(text: str) -> str:
    Obis.parse(text)
    return text


ObisText = Annotated[str, AfterValidator(_obis)]


class MarketModel(Settings):
    """The ``[market]`` table."""

    name: Annotated[str, AfterValidator(_market)]
    """``tenant/market``: what gateways call it."""
    key: PathText
    """Private key that signs what the market says, PEM; ``energybid keys new`` makes one."""
    database: PathText
    """SQLite file; created if it is not there."""
    headend: PathText | None = None
    """The head-end's database, where the readings are; without it nothing is settled."""
    bundles: PathText | None = None
    """Folder for the evidence of settled rounds."""
    client_id: Name = "energybid-market"
    """Unique at the broker."""
    keep: Duration = Field(30 * 86_400.0, ge=3_600, le=3_650 * 86_400)
    """Finished rounds are kept for so long."""


class RoundModel(Settings):
    """The ``[round]`` table."""

    every: Duration = Field(900.0, ge=10, le=86_400)
    """Rounds follow each other; each delivers for so long. They begin at multiples of it since midnight, UTC."""
    announce: Duration = Field(600.0, ge=1, le=2 * 86_400)
    """A round is announced so long before its delivery begins,"""
    gate: Duration = Field(60.0, ge=0, le=86_400)
    """and takes bids until so long before it begins."""
    currency: str = Field("EUR", pattern="^[A-Z]{3}$")
    decimals: int = Field(2, ge=0, le=DECIMALS_MAX)
    """A tick is 10^-decimals money per MWh; amounts have as many."""
    least_price: Money = Decimal(-500)
    most_price: Money = Decimal(4000)
    pricing: Literal["uniform", "as-bid"] = "uniform"
    programme: PathText = "none"
    """Baseline: the name of one that comes with the program, or the path of a TOML file."""
    interval: Duration | None = Field(None, ge=1, le=3_600)
    """Of settlement; without it as long as fits the round, at most 15 minutes. Whole minutes that divide the hour, or
    seconds where the baseline is the bid's schedule."""
    settle_every: Duration = Field(5.0, ge=0.1, le=3_600)
    """How often it is looked whether the readings of a round are there,"""
    settle_within: Duration = Field(86_400.0, ge=1, le=30 * 86_400)
    """and when that is given up."""
    confirm_within: Duration = Field(15.0, ge=0, le=86_400)
    """So long after a delivery its confirmation is waited for."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.announce <= self.gate:
            raise ValueError("announce: must be more than gate, for there to be time to bid")
        if self.every % 1:
            raise ValueError("every: whole seconds are wanted")
        if self.interval and self.every % self.interval:
            raise ValueError("interval: must divide the round")
        if self.least_price > self.most_price:
            raise ValueError("least_price: is above most_price")
        return self

    def interval_ms(self) -> int:
        """Of settlement."""
        return round((self.interval or gcd(int(self.every), QUARTER_MS // 1000)) * 1000)


class PricesModel(Settings):
    """The ``[prices]`` table: what prices there are besides the gateways."""

    file: PathText | None = None
    """CSV with columns ``...day_ahead...`` and ``...real_time...``, a row each 5 minutes from a midnight on; also .gz.
    Without it prices are made up."""
    seed: int = 0
    """Made-up prices follow from it,"""
    mean: Money = Decimal(60)
    """are about this in the mean of a day,"""
    swing: Money = Decimal(40)
    """and so much higher at a usual peak."""
    speed: int = Field(1, ge=1, le=3_600)
    """Seconds of the series in a second: with 60 an hour of prices passes in a minute."""
    begin: Duration = Field(0.0, ge=0)
    """By so much the series is ahead of the clock."""

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if HOUR_MS % self.speed:
            raise ValueError("speed: must divide the hour's milliseconds")
        return self


class RestModel(Settings):
    """The ``[rest]`` table: all others who are in the market. They bid around the real-time price of ``[prices]``."""

    power: Power = Field(1_000_000, ge=0, le=1_000_000_000)
    """They buy and sell so much at most; with 0 there is nobody but the gateways."""
    spread: Money = Field(Decimal(40), ge=0)
    """From the reference to the price at which they do so."""
    steps: int = Field(80, ge=2, le=STEPS_MAX)
    """Of their curve."""


class GatewayModel(Settings):
    """A ``[[gateway]]`` table: who may bid."""

    tenant: Name
    id: Name
    key: PathText
    """The public key of its bids, PEM."""
    meter: str = Field("house", min_length=1, max_length=64)
    """At the site's connection, as the gateway names it: what rounds are settled by."""
    imports: ObisText = "1-0:1.8.0"
    """Register of imported energy."""
    exports: ObisText | None = "1-0:2.8.0"
    events: list[date] = Field(default_factory=list, max_length=EVENTS_MAX)
    """Days that no baseline may be taken from, besides those that the programme leaves out."""


class MarketFile(Settings):
    """market.toml."""

    market: MarketModel
    uplink: UplinkModel
    round: RoundModel = RoundModel()
    prices: PricesModel = PricesModel()
    rest: RestModel = RestModel()
    gateway: list[GatewayModel] = Field(default_factory=list, max_length=GATEWAYS_MAX)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        counts = Counter(f"{g.tenant}/{g.id}" for g in self.gateway)
        twice = [origin for origin, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"gateway: listed more than once: {', '.join(twice)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketPlan:
    """What the process needs; checked."""

    database: str
    headend: str | None
    bundles: Path | None
    key: PrivateKey
    uplink: UplinkSettings
    terms: Terms
    members: tuple[Member, ...]


def load_plan(path: Path) -> MarketPlan:
    """Read and check market.toml and the files it names. Relative paths start from its folder.

    Raises:
        ConfigurationError: Every fault found.
    """
    file, base = read_file(path), path.parent
    faults: list[str] = []
    key = _private(base, file.market.key, faults)
    members = tuple(_member(base, gateway, f"gateway[{n}]", faults) for n, gateway in enumerate(file.gateway))
    terms, uplink = None, None
    try:
        terms = _terms(file, base)
        uplink = file.uplink.settings(file.market.client_id, session_s=86_400, base=base)
    except ConfigurationError as error:
        faults += error.faults
    if key is None or terms is None or uplink is None or faults:
        raise ConfigurationError([f"{path}: {fault}" for fault in faults])
    return MarketPlan(
        database=str(base / file.market.database),
        headend=None if file.market.headend is None else str(base / file.market.headend),
        bundles=None if file.market.bundles is None else base / file.market.bundles,
        key=key,
        uplink=uplink,
        terms=terms,
        members=tuple(member for member in members if member is not None),
    )


def read_file(path: Path) -> MarketFile:
    """Read market.toml, without the files it names.

    Raises:
        ConfigurationError: Every fault in it.
    """
    return read_toml(path, MarketFile, "write one as simulator/README.md shows")


def _terms(file: MarketFile, base: Path) -> Terms:
    rules, rest = file.round, file.rest
    programme, programme_file = _programme(base, rules.programme)
    fault = baseline.fits(programme, rules.interval_ms())
    if fault and file.market.headend is not None:
        where = "every" if rules.interval is None else "interval"
        raise ConfigurationError([f"round.{where}: {fault}, to settle by {programme.name}"])
    least, most = (_ticks(price, rules.decimals) for price in (rules.least_price, rules.most_price))
    return Terms(
        name=file.market.name,
        period_ms=_ms(rules.every),
        announce_ms=_ms(rules.announce),
        gate_ms=_ms(rules.gate),
        currency=rules.currency,
        decimals=rules.decimals,
        least_ticks=least,
        most_ticks=most,
        pricing=Pricing.UNIFORM if rules.pricing == "uniform" else Pricing.AS_BID,
        programme=programme.name,
        programme_file=programme_file,
        interval_ms=rules.interval_ms(),
        prices=_prices(file.prices, base),
        rest=Rest(power_w=rest.power, spread_ticks=_ticks(rest.spread, rules.decimals), steps=rest.steps),
        settle_every_ms=_ms(rules.settle_every),
        settle_within_ms=_ms(rules.settle_within),
        confirm_within_ms=_ms(rules.confirm_within),
        keep_ms=_ms(file.market.keep),
    )


def _ms(seconds: float) -> int:
    return round(1000 * seconds)


def _ticks(price: Decimal, decimals: int) -> int:
    """Within what a message can say, for prices in ticks of many decimals."""
    return min(max(int(price.scaleb(decimals)), -TICKS_MAX), TICKS_MAX)


def _programme(base: Path, name: str) -> tuple[Programme, bytes]:
    """A baseline's programme, and its file."""
    try:
        data = (base / name).read_bytes() if name.endswith(".toml") else baseline_rules.text_of(name)
        return baseline_rules.parse(data), data
    except OSError as error:
        raise ConfigurationError([f"round.programme: {base / name}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigurationError([f"round.programme: {error}"]) from None


def _prices(model: PricesModel, base: Path) -> Scaled:
    offset_ms = _ms(model.begin) % DAY_MS
    if model.file is None:
        return Scaled(MadeUp(model.seed, model.mean, model.swing), model.speed, offset_ms)
    try:
        return Scaled(parse_csv(model.file, (base / model.file).read_bytes()), model.speed, offset_ms)
    except OSError as error:
        raise ConfigurationError([f"prices.file: {base / model.file}: {error.strerror}"]) from None


def _private(base: Path, name: str, faults: list[str]) -> PrivateKey | None:
    try:
        return PrivateKey.from_pem((base / name).read_bytes())
    except (OSError, ValueError) as error:
        faults.append(f"market.key: {base / name}: {error}")
        return None


def _member(base: Path, gateway: GatewayModel, where: str, faults: list[str]) -> Member | None:
    try:
        key = PublicKey.from_pem((base / gateway.key).read_bytes())
    except (OSError, ValueError) as error:
        faults.append(f"{where}.key: {base / gateway.key}: {error}")
        return None
    return Member(
        origin=f"{gateway.tenant}/{gateway.id}",
        key=key,
        topics=topics_for(gateway.tenant, gateway.id),
        meter=gateway.meter,
        imports=Obis.parse(gateway.imports).code,
        exports=None if gateway.exports is None else Obis.parse(gateway.exports).code,
        events=tuple(sorted(set(gateway.events))),
    )
