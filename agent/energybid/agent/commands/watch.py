"""``energybid watch``: one meter again and again. Thin: reading and wording are in ``cabinet``."""

import argparse
import asyncio
import json
import os
import sys

from energybid.agent.cabinet.places import TARGETS, Place, add_place_arguments, duration, mindful_of_the_agent, place_of
from energybid.agent.cabinet.reading import Look, Reader
from energybid.agent.cabinet.table import look_facts
from energybid.agent.cabinet.watching import Statistics, changed, plain_line, screen
from energybid.core import exit_codes
from energybid.core.errors import BusDownError, ConfigurationError
from energybid.drivers.commands.system import platform
from energybid.drivers.probe import Prober

HELP = "read one meter again and again: live values, changes, statistics of the bus"
EXAMPLES = f"""\
examples:
  energybid watch -c gateway.toml heatpump
  energybid watch /dev/ttyUSB0 --unit 2 --profile abb-b23 --interval 500ms
  energybid watch tcp://192.168.1.50 --unit 1 --profile eastron-sdm630 --quantity power --for 30s
  energybid watch -c gateway.toml heatpump --for 1min --json > polls.jsonl

A table that stays in place in a terminal, a line for each poll elsewhere. At the end, by --for or Ctrl-C, the
statistics: polls, delays of the replies, errors by kind. Exit code 1: no poll brought anything.
{TARGETS}"""
UP, CLEAR = "\x1b[{}A", "\x1b[K"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``watch``."""
    add_place_arguments(parser)
    parser.add_argument("--interval", type=duration, default=1.0, metavar="TIME", help="between polls (default: 1s)")
    parser.add_argument("--for", type=duration, dest="period", metavar="TIME", help="end after so long")
    parser.add_argument("--quantity", action="append", metavar="NAME", help="show only these; repeatable")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each poll")


def run(arguments: argparse.Namespace) -> int:
    """Watch."""
    place = place_of(arguments)
    _check(place, arguments.quantity)
    watch = _Watch(arguments, place)
    code = exit_codes.OK
    try:
        asyncio.run(watch.run())
    except KeyboardInterrupt:
        code = exit_codes.INTERRUPTED
    statistics = watch.statistics
    sys.stderr.write(f"{statistics.text()}\n")
    if statistics.failed == statistics.polls and code == exit_codes.OK:
        return exit_codes.FAILED
    return code


def _check(place: Place, names: list[str] | None) -> None:
    known = [register.name for register in place.loaded.registers] if place.loaded else []
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise ConfigurationError([f"--quantity: no quantity {unknown[0]!r}; there are {', '.join(known)}"])


class _Watch:
    """The polls, and where they are shown."""

    def __init__(self, arguments: argparse.Namespace, place: Place) -> None:
        self._arguments = arguments
        self._place = place
        self.statistics = Statistics()
        self._before: Look | None = None
        self._drawn = 0
        """Lines of the table on the terminal."""
        self._live = sys.stdout.isatty() and not arguments.json

    async def run(self) -> None:
        """Poll until the time is over.

        Raises:
            BusDownError: The bus could not be opened at the first poll.
        """
        real, loop = platform(), asyncio.get_running_loop()
        self._now_ns = real.now_ns
        prober = Prober(real.open_bus, self._place.target)
        reader = Reader(prober, self._place, real.now_ns)
        due = loop.time()
        end = None if self._arguments.period is None else due + self._arguments.period
        try:
            while end is None or loop.time() < end:
                await self._poll(reader)
                due = max(due + self._arguments.interval, loop.time())
                await asyncio.sleep(max(0.0, (due if end is None else min(due, end)) - loop.time()))
        finally:
            await prober.close()

    async def _poll(self, reader: Reader) -> None:
        try:
            with mindful_of_the_agent(self._place, self._now_ns):
                look = await reader.look()
        except BusDownError as error:
            if not self.statistics.polls:
                raise
            self.statistics.lost()
            self._tell(f"energybid: {error}")
            return
        self.statistics.add(look)
        self._show(look)
        self._before = look

    def _show(self, look: Look) -> None:
        names = self._arguments.quantity
        if self._arguments.json:
            fresh = changed(look, self._before)
            facts = look_facts(self._place, look)
            facts["values"] = [v for v in facts["values"] if names is None or v["name"] in names]
            sys.stdout.write(json.dumps(facts | {"changed": sorted(fresh)}) + "\n")
        elif self._live:
            size = os.get_terminal_size(sys.stdout.fileno())
            dimensions = (size.columns or 80, size.lines or 24)
            self._draw(screen(self._place, look, self._before, self.statistics, size=dimensions, names=names))
        elif look.read:
            sys.stdout.write(plain_line(look, names) + "\n")
        else:
            self._tell(f"energybid: {reader_fault(self._place, look)}")
        sys.stdout.flush()

    def _draw(self, lines: list[str]) -> None:
        up = UP.format(self._drawn) + "\r" if self._drawn else ""
        below = "\n".join([CLEAR] * max(0, self._drawn - len(lines)))
        sys.stdout.write(up + "".join(f"{line}{CLEAR}\n" for line in lines) + below)
        self._drawn = max(self._drawn, len(lines))

    def _tell(self, text: str) -> None:
        if self._live:
            self._drawn = 0
        sys.stderr.write(text + "\n")


def reader_fault(place: Place, look: Look) -> str:
    """Why a poll brought nothing."""
    return f"{place.name}: {look.asked[-1].error}"
