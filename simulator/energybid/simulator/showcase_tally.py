"""What the demo's market has said so far: counts for the result, and the last rounds for the view. Pure."""

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS_SHOWN = 4


@dataclass(slots=True)
class Shown:
    """A round as the view has it."""

    number: int
    price: str
    awards: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What was said of each gateway: verdict, schedule_w, net_w; and when it was settled, amount and so on."""


@dataclass(slots=True)
class Earned:
    """What a gateway has to show."""

    awarded: int = 0
    settled: int = 0
    delivered_wh: int = 0
    paid: Decimal = Decimal(0)


class Tally:
    """Takes the market's JSON lines as they come."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.counts: Counter[str] = Counter()
        """Of events, and of ``awarded``."""
        self.on_event: Callable[[dict[str, Any]], None] = lambda _: None
        """Told of each."""
        self.delivered_wh = 0
        self.paid = Decimal(0)
        self.currency = ""
        self.earned: defaultdict[str, Earned] = defaultdict(Earned)
        """By gateway."""
        self.rounds: deque[Shown] = deque(maxlen=ROUNDS_SHOWN)
        """The last ones that had an award."""
        self.refusals: deque[str] = deque(maxlen=8)
        self._open: dict[tuple[int, str], int] = {}
        """End of the delivery of awards that are not settled yet, by round and gateway."""

    def take(self, event: dict[str, Any]) -> None:
        """One line."""
        self.counts[event["event"]] += 1
        self.on_event(event)
        match event["event"]:
            case "cleared":
                self._cleared(event)
            case "settled":
                self._settled(event)
            case "unsettled":
                self._end(event)
            case "refused":
                self.refusals.append(f"{event['gateway']}: {event['why']}")

    def _settled(self, event: dict[str, Any]) -> None:
        delivered_wh, amount = event["delivered_wh"], Decimal(event["amount"])
        self.delivered_wh += delivered_wh
        self.paid += amount
        earned = self.earned[event["gateway"]]
        earned.settled += 1
        earned.delivered_wh += delivered_wh
        earned.paid += amount
        self._end(event)

    def _cleared(self, event: dict[str, Any]) -> None:
        self.currency = event.get("currency", self.currency)
        awards = {award["gateway"]: award for award in event["awards"]}
        awarded = sum(award["verdict"] == "awarded" for award in awards.values())
        self.counts["awarded"] += awarded
        for name, award in awards.items():
            if award["verdict"] == "awarded":
                self._open[event["round"], name] = event["ends_ms"]
                self.earned[name].awarded += 1
        if awarded:
            self.rounds.append(Shown(event["round"], event["price"], awards))

    def is_open(self, before_ms: int) -> bool:
        """Whether an award is not settled whose delivery was over before a moment."""
        return any(ends_ms <= before_ms for ends_ms in self._open.values())

    def _end(self, event: dict[str, Any]) -> None:
        self._open.pop((event["round"], event["gateway"]), None)
        for shown in self.rounds:
            if shown.number == event["round"] and event["gateway"] in shown.awards:
                shown.awards[event["gateway"]] |= event

    def result(self, bundles: int, verified: int) -> dict[str, Any]:
        """The counts for the demo's last word."""
        counts = self.counts
        return {
            "rounds": counts["cleared"],
            "bids": counts["bid"],
            "refused": counts["refused"],
            "awarded": counts["awarded"],
            "confirmed": counts["confirmed"],
            "settled": counts["settled"],
            "unsettled": counts["unsettled"],
            "delivered_wh": self.delivered_wh,
            "paid": str(self.paid),
            "currency": self.currency,
            "gateways": {
                name: {
                    "awarded": each.awarded,
                    "settled": each.settled,
                    "delivered_wh": each.delivered_wh,
                    "paid": str(each.paid),
                }
                for name, each in sorted(self.earned.items())
            },
            "bundles": bundles,
            "bundles_verified": verified,
            "refusals": list(self.refusals),
        }
