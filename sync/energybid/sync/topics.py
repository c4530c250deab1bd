"""The MQTT topics: one table, from which names are built and parsed and docs/topics.md is written.

Names are checked, so that no tenant or gateway can bring a wildcard or a level of its own into a topic.
"""

import re
from typing import NamedTuple

FORMAT = 1
"""Version of everything below ``energybid/<version>``; another version is another tree of topics."""
NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
"""What a tenant and a gateway may be called."""


class Topic(NamedTuple):
    """One row of the table."""

    kind: str
    """Last level of the topic."""
    sender: str
    receiver: str
    qos: int
    retained: str
    payload: str
    section: str
    """Where docs/formats.md pins the payload."""
    purpose: str


TABLE = (
    Topic("log", "gateway", "head-end", 1, "no", "batch (binary)", "§7",
          "Entries of the log with a signed checkpoint."),
    Topic("receipt", "head-end", "gateway", 1, "yes", "receipt (COSE_Sign1)", "§5.4",
          "What the head-end has stored. Retained: a gateway that subscribes gets the last one."),
    Topic("status", "gateway", "anyone", 1, "yes", "JSON object", "§9.1",
          "Whether the gateway is online. Also its last will. Unsigned: for people, never evidence."),
)  # fmt: skip


class Topics(NamedTuple):
    """The topics of one gateway; one field for each row of the table."""

    log: str
    receipt: str
    status: str


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


def every(kind: str) -> str:
    """Subscription to one kind of every gateway of every tenant."""
    if kind not in Topics._fields:
        raise ValueError(f"no topic {kind!r}; there are {', '.join(Topics._fields)}")
    return f"energybid/{FORMAT}/+/+/{kind}"


def parse(topic: str) -> tuple[str, str, str] | None:
    """(tenant, gateway, kind) of a topic of this version; None for any other."""
    match topic.split("/"):
        case ["energybid", version, tenant, gateway, kind] if version == str(FORMAT) and kind in Topics._fields:
            return (tenant, gateway, kind) if NAME.fullmatch(tenant) and NAME.fullmatch(gateway) else None
    return None


def document() -> str:
    """docs/topics.md."""
    rows = "\n".join(
        f"| `energybid/{FORMAT}/<tenant>/<gateway>/{t.kind}` | {t.sender} → {t.receiver} | {t.qos} "
        f"| {t.retained} | {t.payload} | {t.section} | {t.purpose} |"
        for t in TABLE
    )
    return f"""# MQTT topics

Written by `python -m energybid.sync.topics > docs/topics.md`; do not edit.

`<tenant>` and `<gateway>` are 1 to 64 of `A-Z a-z 0-9 . _ -`. The `{FORMAT}` is the version of the formats. "Format"
names the section of [formats.md](formats.md) that pins the payload.

| topic | direction | QoS | retained | payload | format | purpose |
|---|---|---|---|---|---|---|
{rows}

## What a broker should allow

A gateway's client id is `energybid-<tenant>-<gateway>`. With access control in mosquitto, where the user's name is
`<tenant>/<gateway>`:

```
pattern write energybid/{FORMAT}/%u/log
pattern read energybid/{FORMAT}/%u/receipt
pattern write energybid/{FORMAT}/%u/status
user headend
topic read energybid/{FORMAT}/+/+/log
topic write energybid/{FORMAT}/+/+/receipt
```

Access control keeps strangers from filling the broker; the evidence does not rest on it: batches and receipts are
signed, and whoever can write to a topic can delay them but not forge them.

With mosquitto, set `set_tcp_nodelay true` (else acknowledgements of bursts wait 40 ms), `max_inflight_messages 64`, and
for the head-end's session a `max_queued_messages` that lasts as long as the head-end may be away; what does not fit is
sent again by the gateways.
"""


if __name__ == "__main__":
    import sys

    sys.stdout.write(document())
