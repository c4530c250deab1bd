"""``energybid demo``: meters, agents, broker, head-end and a market on this machine, and what became of everything."""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel

from energybid.core import exit_codes
from energybid.core.errors import EnergybidError
from energybid.simulator.config import duration
from energybid.simulator.showcase import Showcase
from energybid.simulator.system import now_ms, remove_folder, scratch_folder, stop_event
from energybid.simulator.view import line, screen

HELP = "show the whole product on this machine: meters to signed receipts, bids to recomputed settlements"
EXAMPLES = """\
examples:
  energybid demo                         a live view, until Ctrl-C; then the count of what became of every reading
  energybid demo --for 30s --json        one JSON object at the end
  energybid demo --for 3m --json         long enough for a round of the market to be delivered and settled
  energybid demo --directory mydemo      keep keys, configurations, logs, databases and evidence bundles there
  energybid demo --no-market             one gateway that only reads meters: for a small machine

Exit code 0: nothing lost, nothing duplicated, everything verified, no round left unsettled that could be.
"""
FRAME_S, LINE_S = 0.5, 5.0
"""How often the live view and the log lines come."""
COUNTS = (
    ("read", "readings the agent took from the meters"),
    ("logged", "readings in the gateway's signed log"),
    ("acknowledged", "readings the head-end has signed for"),
    ("lost", "readings read or signed for, and missing"),
    ("duplicated", "readings the head-end holds twice"),
    ("verified", "every hash and signature, on both sides"),
)
MARKET_COUNTS = (
    ("rounds", "rounds that the market cleared"),
    ("bids", "bids that came in time"),
    ("awarded", "awards"),
    ("refused", "messages that the market refused"),
    ("settled", "awards settled from the readings"),
    ("unsettled", "awards that could not be settled"),
    ("bundles_verified", "evidence bundles recomputed from their bytes and the public keys"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``demo``."""
    parser.add_argument("--for", dest="for_s", type=duration, metavar="DURATION", help="end after so long, such as 30s")
    parser.add_argument("--json", action="store_true", help="print one JSON object at the end")
    parser.add_argument("--no-market", dest="market", action="store_false", help="one gateway, and nothing is bid")
    parser.add_argument("--directory", type=Path, help="an empty or new folder to keep everything in")


def run(arguments: argparse.Namespace) -> int:
    """Run the demo."""
    folder = scratch_folder(arguments.directory)
    try:
        live = sys.stdout.isatty() and not arguments.json
        result = asyncio.run(_demo(folder, arguments.for_s, live=live, market=arguments.market))
    except EnergybidError as error:
        raise EnergybidError(f"{error}\neverything is kept in {folder}") from None
    code = exit_code(result)
    if arguments.directory is None and code == exit_codes.OK:
        remove_folder(folder)
    else:
        result["directory"] = str(folder)
    sys.stdout.write((json.dumps(result) if arguments.json else _table(result)) + "\n")
    return code


def exit_code(result: dict[str, Any]) -> int:
    """0 only if nothing is lost, nothing duplicated, everything verified, and every round settled whose time it was."""
    if not result["verified"]:
        return exit_codes.NOT_VERIFIED
    failed = result["lost"] or result["duplicated"] or not result["read"]
    return exit_codes.FAILED if failed or result.get("market", {}).get("unsettled") else exit_codes.OK


async def _demo(folder: Path, for_s: float | None, *, live: bool, market: bool) -> dict[str, Any]:
    stop = stop_event(hangup=True)
    async with AsyncExitStack() as stack:
        showcase = await Showcase.start(folder, stack, market=market)
        await _watch(showcase, stop, for_s, live=live)
        if not live:
            _say("stopping: the agents send their last batch and wait for the receipt")
        simulated = await showcase.finish()
    return {**await showcase.result(), "simulated": simulated}


async def _watch(showcase: Showcase, stop: asyncio.Event, for_s: float | None, *, live: bool) -> None:
    """Show until ``stop``, the time is over, or a part ends.

    Raises:
        EnergybidError: A part ended.
    """
    show = _show_live(showcase) if live else _show_lines(showcase)
    tasks = [asyncio.ensure_future(each) for each in (show, showcase.ended(), stop.wait())]
    done, _ = await asyncio.wait(tasks, timeout=for_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()


async def _show_live(showcase: Showcase) -> None:
    console = Console()

    def frame() -> Group | Panel:
        return screen(showcase.statuses(), showcase.shown_market, now_ms(), console.width)

    with Live(frame(), console=console, auto_refresh=False) as view:
        await _every(FRAME_S, lambda: view.update(frame(), refresh=True))


async def _show_lines(showcase: Showcase) -> None:
    await _every(LINE_S, lambda: _say(line(showcase.statuses(), showcase.shown_market, now_ms())))


async def _every(interval_s: float, show: Callable[[], None]) -> None:
    while True:
        show()
        await asyncio.sleep(interval_s)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _earned(market: dict[str, Any]) -> list[str]:
    """What each gateway delivered, against what it would have taken, and what it was paid for it."""
    rows = [*market["gateways"].items(), ("all", market)]
    return [
        f"  {name:16} {each['settled']:>8}   settled: {each['delivered_wh']} Wh delivered, "
        f"{each['paid']} {market['currency']}"
        for name, each in rows
    ]


def _table(result: dict[str, Any]) -> str:
    def text(value: object) -> str:
        return {True: "yes", False: "NO"}[value] if isinstance(value, bool) else str(value)

    lines = [f"  {name:16} {text(result[name]):>8}   {meaning}" for name, meaning in COUNTS]
    if market := result.get("market"):
        lines += ["", *(f"  {name:16} {market[name]:>8}   {meaning}" for name, meaning in MARKET_COUNTS)]
        lines += ["", *_earned(market)]
    kept = [f"  everything is kept in {result['directory']}"] if "directory" in result else []
    per_value = f"{result['mqtt_bytes_per_value']} bytes of MQTT for each of {result['values']} values"
    if result["market_bytes"]:
        per_value += f", and {result['market_bytes']} bytes of messages with the market"
    return "\n".join(["", *lines, "", f"  {per_value}", *(f"  fault: {fault}" for fault in result["faults"]), *kept])
