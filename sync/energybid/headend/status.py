"""What a head-end's database says of itself, for ``energybid headend status``. Reads only."""

from typing import Any

from energybid.headend.store import EpochRow, Store


def facts(store: Store) -> dict[str, Any]:
    """Gateways, epochs, conflicts."""
    gateways = [_gateway(store, number, origin) for number, origin in store.origins()]
    return {
        "kind": "headend",
        "gateways": gateways,
        "entries": sum(epoch["size"] for g in gateways for epoch in g["epochs"]),
        "readings": sum(epoch["readings"] for g in gateways for epoch in g["epochs"]),
        "conflicts": sum(len(g["conflicts"]) for g in gateways),
    }


def _gateway(store: Store, number: int, origin: str) -> dict[str, Any]:
    return {
        "origin": origin,
        "epochs": [_epoch(store, row) for row in store.epochs(number)],
        "pending": store.pending(number)[0],
        "conflicts": [
            {"epoch": epoch.hex(), "first": first, "end": end, "kind": kind, "detail": detail, "received_ms": received}
            for epoch, first, end, kind, detail, received in store.conflicts(number)
        ],
    }


def _epoch(store: Store, row: EpochRow) -> dict[str, Any]:
    receipt = store.receipt(row)
    return {
        "epoch": row.epoch.hex(),
        "size": row.size,
        "readings": row.readings,
        "root": row.frontier().root().hex(),
        "receipt": {"size": receipt.size, "time_ms": receipt.time_ms} if receipt else None,
    }
