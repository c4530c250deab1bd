"""What a market shows of its rounds: one table each, when all is settled. Pure: events in, text out."""

from typing import Any

from energybid.simulator.market.operator import Event


class Rounds:
    """Collects a round's events until its table is complete."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._cleared: dict[int, dict[str, Any]] = {}
        self._ends: dict[int, dict[str, dict[str, Any]]] = {}

    def take(self, event: Event) -> str:
        """The lines that an event gives, if any."""
        facts = dict(event.facts)
        if event.kind == "cleared":
            return self._clear(facts)
        if event.kind in {"settled", "unsettled"}:
            return self._end(facts)
        if event.kind == "refused":
            return f"refused: {facts['gateway']}: {facts['why']}\n"
        return ""

    def _clear(self, facts: dict[str, Any]) -> str:
        traded = [award["gateway"] for award in facts["awards"] if award["verdict"] == "awarded"]
        if traded:
            self._cleared[facts["round"]] = facts
            self._ends[facts["round"]] = {}
        price = "" if facts["price"] is None else f" at {facts['price']} {facts['currency']}/MWh"
        return f"round {facts['round']}: {facts['outcome']}{price}, {len(facts['awards'])} bids\n"

    def _end(self, facts: dict[str, Any]) -> str:
        """The table, with the last of its gateways."""
        number = facts["round"]
        cleared = self._cleared.get(number)
        if cleared is None:
            return f"round {number}, {facts['gateway']}: {_result(facts)}\n"
        ends = self._ends[number]
        ends[facts["gateway"]] = facts
        if len(ends) < sum(award["verdict"] == "awarded" for award in cleared["awards"]):
            return ""
        del self._cleared[number], self._ends[number]
        return table(cleared, ends)


def table(cleared: dict[str, Any], ends: dict[str, dict[str, Any]]) -> str:
    """A round that is over.

    Args:
        cleared: Facts of its clearing.
        ends: Facts of its settlement, by gateway.
    """
    lines = [f"round {cleared['round']} at {cleared['price']} {cleared['currency']}/MWh"]
    lines.append(f"  {'gateway':24} {'schedule W':>10} {'award W':>10} {'awarded Wh':>10}  settled")
    for award in cleared["awards"]:
        end = ends.get(award["gateway"], {})
        awarded_wh = end.get("awarded_wh", "–")
        powers = f"{award['schedule_w']:>10} {award['net_w']:>10} {awarded_wh:>10}"
        lines.append(f"  {award['gateway']:24} {powers}  {_result(end)}")
    return "\n".join(lines) + "\n"


def _result(end: dict[str, Any]) -> str:
    if "amount" in end:
        return f"{end['delivered_wh']} Wh delivered, {end['amount']} {end['currency']}"
    return str(end.get("why", "nothing awarded"))
