"""The MQTT topics: one table, from which names are built and parsed and docs/topics.md is written.

Names are checked, so that no tenant or gateway can bring a wildcard or a level of its own into a topic.
"""

import re
from typing import NamedTuple

FORMAT = 1
"""Version of everything below ``energybid/<version>``; another version is another tree of topics."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a tenant, a gateway and a market may be called."""


class Topic(NamedTuple):
    """One row of the table."""

    kind: str
    """Last level of the topic."""
    sender: str
    receiver: str
    qos: int
    retained: str
    payload: str
    where: str
    """Which section pins the payload, of docs/formats.md or of docs/market.md (as a link)."""
    purpose: str


TABLE = (
    Topic("log", "gateway", "head-end", 1, "no", "batch (binary)", "§7",
          "Entries of the log with a signed checkpoint."),
    Topic("receipt", "head-end", "gateway", 1, "yes", "receipt (COSE_Sign1)", "§5.4",
          "What the head-end has stored. Retained: a gateway that subscribes gets the last one."),
    Topic("status", "gateway", "anyone", 1, "yes", "JSON object", "§9.1",
          "Whether the gateway is online. Also its last will. Unsigned: for people, never evidence."),
    Topic("bid", "gateway", "market", 1, "no", "bid (COSE_Sign1)", "[Bid](market.md#bid)",
          "What the gateway offers in a round."),
    Topic("dispatch", "gateway", "market", 1, "no", "confirmation (COSE_Sign1)",
          "[Confirmation](market.md#confirmation)", "What the gateway did about an award."),
    Topic("award", "market", "gateway", 1, "no", "award (COSE_Sign1)", "[Award](market.md#award)",
          "What the gateway got in a round. A retained one is refused."),
    Topic("statement", "market", "gateway", 1, "no", "statement (COSE_Sign1)", "[Statement](market.md#statement)",
          "What a round is worth to the gateway. A retained one is refused."),
)  # fmt: skip
"""Of one gateway: ``energybid/1/<tenant>/<gateway>/<kind>``."""

MARKET_TABLE = (
    Topic("round", "market", "gateways", 1, "yes", "announcement (COSE_Sign1)", "[Round](market.md#round)",
          "Announces a round. Retained: a gateway that connects late finds the last one."),
    Topic("day-ahead", "market", "gateways", 1, "yes", "prices (COSE_Sign1)", "[Prices](market.md#prices)",
          "Prices of steps to come. Retained."),
    Topic("real-time", "market", "gateways", 1, "yes", "prices (COSE_Sign1)", "[Prices](market.md#prices)",
          "Prices of the last steps. Retained."),
)  # fmt: skip
"""Of one market, for all its gateways: ``energybid/1/<tenant>/<market>/<kind>``."""

_KINDS = frozenset(row.kind for row in (*TABLE, *MARKET_TABLE))


class Topics(NamedTuple):
    """The topics of one gateway; one field for each row of the table."""

    log: str
    receipt: str
    status: str
    bid: str
    dispatch: str
    award: str
    statement: str


class MarketTopics(NamedTuple):
    """The topics of one market for all its gateways; one field for each row of its table."""

    round: str
    day_ahead: str
    real_time: str


def checked(name: str, what: str = "name") -> str:
    """The name itself.

    Raises:
        ValueError: It is not 1 to 64 of ``A-Z a-z 0-9 . _ -``.
    """
    if not NAME.fullmatch(name):
        raise ValueError(f"{what} {name!r}: write 1 to 64 letters, digits, dots, underscores or hyphens")
    return name


def topics_for(tenant: str, gateway: str) -> Topics:
    """The topics of one gateway.

    Raises:
        ValueError: A name that may not stand in a topic.
    """
    root = f"energybid/{FORMAT}/{checked(tenant, 'tenant')}/{checked(gateway, 'gateway')}"
    return Topics(*(f"{root}/{row.kind}" for row in TABLE))


def market_topics(name: str) -> MarketTopics:
    """The topics of one market.

    Args:
        name: ``tenant/market``.

    Raises:
        ValueError: A name that may not stand in a topic, or not two of them.
    """
    tenant, slash, market = name.partition("/")
    if not slash:
        raise ValueError(f"market {name!r}: write tenant/market")
    root = f"energybid/{FORMAT}/{checked(tenant, 'tenant')}/{checked(market, 'market')}"
    return MarketTopics(*(f"{root}/{row.kind}" for row in MARKET_TABLE))


def every(kind: str, tenant: str = "+") -> str:
    """Subscription to one kind of every gateway, or of those of one tenant.

    Raises:
        ValueError: There is no such topic, or no such tenant.
    """
    if kind not in _KINDS:
        raise ValueError(f"no topic {kind!r}; there are {', '.join(sorted(_KINDS))}")
    return f"energybid/{FORMAT}/{tenant if tenant == '+' else checked(tenant, 'tenant')}/+/{kind}"


def parse(topic: str) -> tuple[str, str, str] | None:
    """(tenant, gateway or market, kind) of a topic of this version; None for any other."""
    match topic.split("/"):
        case ["energybid", version, tenant, name, kind] if version == str(FORMAT) and kind in _KINDS:
            return (tenant, name, kind) if NAME.fullmatch(tenant) and NAME.fullmatch(name) else None
    return None


def _rows(table: tuple[Topic, ...], whose: str) -> str:
    return "\n".join(
        f"| `energybid/{FORMAT}/<tenant>/<{whose}>/{t.kind}` | {t.sender} → {t.receiver} | {t.qos} "
        f"| {t.retained} | {t.payload} | {t.where} | {t.purpose} |"
        for t in table
    )


def document() -> str:
    """docs/topics.md."""
    return f"""# MQTT topics

Written by `python -m energybid.sync.topics > docs/topics.md`; do not edit.

`<tenant>`, `<gateway>` and `<market>` are 1 to 64 of `A-Z a-z 0-9 . _ -`. The `{FORMAT}` is the version of the
formats. "Format" names the section of [formats.md](formats.md), or of [market.md](market.md), that pins the payload.

| topic | direction | QoS | retained | payload | format | purpose |
|---|---|---|---|---|---|---|
{_rows(TABLE, "gateway")}
{_rows(MARKET_TABLE, "market")}

A gateway takes part in at most one market, whose tenant is its own or another. Bids and confirmations go to topics of
the gateway's own; the market subscribes those of its gateways.

## What a broker should allow

A gateway's client id is `energybid-<tenant>-<gateway>`. With access control in mosquitto, where a gateway's user is
named `<tenant>/<gateway>`, and the market `demo/power` is for the gateways of the tenant `demo`:

```
pattern write energybid/{FORMAT}/%u/log
pattern read energybid/{FORMAT}/%u/receipt
pattern write energybid/{FORMAT}/%u/status
pattern write energybid/{FORMAT}/%u/bid
pattern write energybid/{FORMAT}/%u/dispatch
pattern read energybid/{FORMAT}/%u/award
pattern read energybid/{FORMAT}/%u/statement
pattern read energybid/{FORMAT}/+/+/round
pattern read energybid/{FORMAT}/+/+/day-ahead
pattern read energybid/{FORMAT}/+/+/real-time

user headend
topic read energybid/{FORMAT}/+/+/log
topic write energybid/{FORMAT}/+/+/receipt

user market
topic write energybid/{FORMAT}/demo/power/round
topic write energybid/{FORMAT}/demo/power/day-ahead
topic write energybid/{FORMAT}/demo/power/real-time
topic read energybid/{FORMAT}/demo/+/bid
topic read energybid/{FORMAT}/demo/+/dispatch
topic write energybid/{FORMAT}/demo/+/award
topic write energybid/{FORMAT}/demo/+/statement
```

Access control keeps strangers from filling the broker; the evidence does not rest on it: batches and receipts are
signed, and so are the market's messages; whoever can write to a topic can delay them but not forge them. Bids are
signed, not encrypted, and the status tells of them: who may read them knows what the sites offer, so let only the
market and the utility.

With mosquitto, set `set_tcp_nodelay true` (else acknowledgements of bursts wait 40 ms), `max_inflight_messages 64`, and
for the head-end's session a `max_queued_messages` that lasts as long as the head-end may be away; what does not fit is
sent again by the gateways. A gateway in a market asks for a session of a week: statements, which come once, wait for it
at the broker. An award that waited too long is refused.
"""


if __name__ == "__main__":
    import sys

    sys.stdout.write(document())
