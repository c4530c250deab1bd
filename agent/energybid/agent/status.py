"""Status: what the agent tells people and tools on the gateway, as one JSON file that is replaced whole.

The file lies on a RAM disk (/run), so that it costs the card nothing. It is for eyes and monitoring, never evidence.
"""

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from energybid.agent.plan import AgentPlan
from energybid.agent.polling import BusPoller, Meter
from energybid.agent.quarantine import quarantines
from energybid.agent.recorder import Recorder
from energybid.agent.upload import Uploader
from energybid.core.ports import Platform
from energybid.core.quantities import ClockState, Status, decimal_text

logger = logging.getLogger("energybid.agent")


def meter_status(meter: Meter, learned: Mapping[str, Any]) -> dict[str, Any]:
    """State and last values of a meter, and what its driver has learned of it."""
    values: dict[str, str] = {}
    for number, sample in sorted(meter.last.items()):
        marks = sample.status or (0,) * len(sample.values)
        quantities = meter.plan.groups[number].quantities
        for quantity, value, mark in zip(quantities, sample.values, marks, strict=True):
            text = f"({Status(mark).name.lower()})" if value is None else decimal_text(value, quantity.exponent)
            values[str(quantity.obis)] = text if quantity.unit == "1" or value is None else f"{text} {quantity.unit}"
    return {
        "name": meter.plan.name,
        "bus": meter.bus,
        "unit": meter.plan.unit,
        "profile": meter.plan.profile,
        "state": meter.state.value,
        "error": meter.error,
        "polls": meter.polls,
        "failed_polls": meter.failed_polls,
        "time_ms": max((sample.time_ms for sample in meter.last.values()), default=None),
        "values": values,
        "learned": dict(learned),
    }


def journal_status(platform: Platform, recorder: Recorder, now_s: float) -> dict[str, Any]:
    """How the journal keeps to its budget and its disk."""
    space = recorder.space
    return {
        "path": recorder.journal.path,
        "bytes": space.usage.file + space.usage.wal,
        "used": space.usage.used,
        "room": space.room,
        "budget": space.budget.size,
        "stage": space.budget.stage.value,
        "logged_of": space.budget.every,
        "not_logged": space.not_logged,
        "bytes_per_hour": round(space.growth(now_s)),
        "full_in_s": space.full_in_s(now_s),
        "ballast": space.ballast_there,
        "error": recorder.stalled,
        "quarantined": quarantines(platform.disk, recorder.journal.path) if platform.disk else [],
    }


def agent_status(
    platform: Platform, plan: AgentPlan, recorder: Recorder, pollers: Sequence[BusPoller], uploader: Uploader | None
) -> dict[str, Any]:
    """Everything the status file says."""
    sent, received = uploader.wire_bytes() if uploader else (0, 0)
    receipt = uploader.receipt if uploader else None
    return {
        "version": plan.version,
        "gateway": plan.origin,
        "time_ms": platform.now_ns() // 1_000_000,
        "clock": ClockState(platform.clock_state()).name.lower(),
        "readings": recorder.readings,
        "values": recorder.values,
        "log": {
            "epoch": recorder.epoch.id.hex(),
            "size": recorder.size,
            "committed": recorder.committed,
            "acknowledged": recorder.acknowledged_size,
        },
        "journal": journal_status(platform, recorder, asyncio.get_running_loop().time()),
        "uplink": {
            "configured": uploader is not None,
            "connected": bool(uploader and uploader.connected),
            "error": uploader.error if uploader else "",
            "sent_bytes": sent,
            "received_bytes": received,
            "batches": uploader.batches if uploader else 0,
            "resent": uploader.resent if uploader else 0,
            "in_flight": uploader.in_flight if uploader else 0,
        },
        "receipt": {"size": receipt.size, "root": receipt.root.hex(), "time_ms": receipt.time_ms} if receipt else None,
        "overruns": {poller.name: poller.overruns for poller in pollers},
        "meters": [
            meter_status(meter, poller.driver.shown(meter.plan)) for poller in pollers for meter in poller.meters
        ],
    }


async def write_status(interval_s: float, status: Callable[[], dict[str, Any]], write: Callable[[bytes], None]) -> None:
    """Write the status every interval, until cancelled, and once more then; a failure is logged and costs no more."""
    try:
        while True:
            _write(status, write)
            await asyncio.sleep(interval_s)
    finally:
        _write(status, write)


def _write(status: Callable[[], dict[str, Any]], write: Callable[[bytes], None]) -> None:
    try:
        write(json.dumps(status()).encode())
    except OSError as error:
        logger.warning("status file: %s", error)
