"""``energybid bids``: the rounds of the market as the log has them, with the curve of each bid."""

import argparse
import asyncio
import json
import shutil
import sys
from pathlib import Path

from energybid.agent.config import load_plan
from energybid.agent.databases import opened
from energybid.agent.journal import Journal
from energybid.agent.market.past import Kept, Past, messages_of
from energybid.agent.market.views import RoundView, Story, coins, details, drawn, money, plain, row, table
from energybid.core import exit_codes
from energybid.core.entries import MarketKind
from energybid.core.errors import EnergybidError
from energybid.sync.system import now_ns

HELP = "show the rounds of the market: state, curve, award, delivered, money"
EXAMPLES = """\
examples:
  energybid bids -c gateway.toml
  energybid bids -c gateway.toml --round 42
  energybid bids -c gateway.toml --follow
  energybid bids -j /var/lib/energybid/journal.db --last 96 --json | jq .statement.amount

Read from the journal, which the agent may be writing: what it says was signed, and judged when it came. With --json one
object a line for each round; with --follow again whenever it changes.
"""
LAST = 20
ROWS_MAX = 300_000
"""Rows of the journal that are looked through, from its end back: a month of commits every 5 s is about as much."""
LOOK_S = 1.0
"""With --follow, how often the journal is looked at."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``bids``."""
    parser.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"), help="gateway.toml")
    parser.add_argument("-j", "--journal", type=Path, help="the journal itself, without a configuration")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--round", type=int, metavar="N", help="all of one round")
    what.add_argument("--last", type=int, default=LAST, metavar="N", help=f"so many rounds (default: {LAST})")
    parser.add_argument("--follow", action="store_true", help="go on, and show what changes, until Ctrl-C")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each round")


def run(arguments: argparse.Namespace) -> int:
    """Show the rounds."""
    path = arguments.journal or Path(load_plan(arguments.config).journal.path)
    reader = _Reader(path)
    story = Story()
    story.tell(kept.entry for kept in reader.last(arguments.last, arguments.round))
    story.advance(now_ns() // 1_000_000)
    views = _wanted(story, arguments)
    if arguments.round is not None and not views and not arguments.follow:
        raise EnergybidError(f"{path}: no round {arguments.round}")
    sys.stdout.write(_shown(story, views, arguments))
    sys.stdout.flush()
    if arguments.follow:
        asyncio.run(_follow(reader, story, arguments))
    return exit_codes.OK


def _wanted(story: Story, arguments: argparse.Namespace) -> list[RoundView]:
    views = list(story.rounds.values())
    if arguments.round is not None:
        return [view for view in views if view.made.number == arguments.round]
    return views[-arguments.last :] if arguments.last > 0 else []


def _shown(story: Story, views: list[RoundView], arguments: argparse.Namespace) -> str:
    width = shutil.get_terminal_size().columns
    if arguments.json:
        lines = [json.dumps(plain(view)) for view in views]
    elif arguments.round is not None:
        lines = [line for view in views for line in details(view, width)]
    elif views:
        bid = next((view for view in reversed(views) if view.bid), None)
        lines = [*table(views), "", *(drawn(bid, width) if bid else []), *_sums(story, views)]
    else:
        lines = ["no rounds: the journal holds none yet", *_sums(story, views)]
    return "".join(f"{line}\n" for line in lines)


def _sums(story: Story, views: list[RoundView]) -> list[str]:
    settled = ", ".join(coins(amount, currency) for currency, amount in money(views).items())
    refused = ", ".join(f"{count} {why}" for why, count in sorted(story.refused.items()))
    lines = [f"settled in these rounds: {settled}"] if settled else []
    return lines + ([f"refused messages: {refused}"] if refused else [])


async def _follow(reader: "_Reader", story: Story, arguments: argparse.Namespace) -> None:
    """Show each round again whenever its line changes, until cancelled."""
    before = {key: row(view) for key, view in story.rounds.items()}
    while True:
        await asyncio.sleep(LOOK_S)
        story.tell(kept.entry for kept in reader.more())
        story.advance(now_ns() // 1_000_000)
        changed = [view for view in _wanted(story, arguments) if before.get(_key(view)) != row(view)]
        before |= {_key(view): row(view) for view in changed}
        for view in changed:
            sys.stdout.write(json.dumps(plain(view)) if arguments.json else "  ".join(row(view)))
            sys.stdout.write("\n")
        sys.stdout.flush()


def _key(view: RoundView) -> tuple[str, int]:
    return view.made.market, view.made.number


class _Reader:
    """Reads the market's messages of a journal, and later those that have come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = (0, -1)
        """(epoch, sequence) of the last entry that was seen."""

    def last(self, rounds: int, number: int | None) -> list[Kept]:
        """Messages back to the announcement of so many rounds, or of all, in the log's order."""
        found: list[Kept] = []
        with opened(self._path) as database:
            past = Past(Journal(database, str(self._path), check=False), 0, ROWS_MAX)
            while (part := past.look()) is not None:
                found[:0] = part
                if number is None and _announced(found) > rounds:
                    break
        self._at = max([self._at, *((kept.epoch, kept.sequence) for kept in found)])
        return found

    def more(self) -> list[Kept]:
        """Messages that came since."""
        found: list[Kept] = []
        epoch_number, sequence = self._at
        with opened(self._path) as database:
            journal = Journal(database, str(self._path), check=False)
            for epoch in journal.epochs():
                if epoch.number < epoch_number:
                    continue
                first = sequence + 1 if epoch.number == epoch_number else 0
                for segment in journal.segments(epoch.number, first):
                    found += [kept for kept in messages_of(epoch, segment) if kept.sequence >= first]
                    self._at = epoch.number, segment.end - 1
        return found


def _announced(found: list[Kept]) -> int:
    return sum(kept.entry.kind == MarketKind.ROUND and not kept.entry.reason for kept in found)
