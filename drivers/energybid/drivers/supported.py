"""The list of meter models, generated from the profiles.

``python -m energybid.drivers.supported > SUPPORTED.md`` writes it; a test checks that the file is current.
"""

import sys
from collections.abc import Iterator
from itertools import groupby

from energybid.drivers.planner import REPLY_DELAY_S, Span, serial_cost, tcp_cost
from energybid.drivers.profile import LoadedProfile, list_profiles, load_profile, plan_requests
from energybid.drivers.profile_file import Source
from energybid.drivers.sunspec.models import MODELS

COMMAND = "python -m energybid.drivers.supported > SUPPORTED.md"
BAUDRATE = 9600
HEAD = f"""\
# Supported meters

Written by `{COMMAND}`; do not edit. A model is one TOML file:
[drivers/README.md](drivers/README.md) says how to add one.

{{profiles}} profiles for {{models}} models of {{makers}} makers. `energybid profile show NAME` lists the quantities,
`energybid profile plan NAME` draws the requests of a poll.

*Requests*: to read all quantities of the model once. They are the optimum: no plan within the model's limits (registers
that may be read at once, most registers a request) takes less time on that bus; over a network that is the fewest
requests. *Time*: of such a poll at {BAUDRATE:,} baud, 8N1, with a meter that begins its reply after {REPLY_DELAY_S * 1000:g} ms.
"""  # noqa: E501  one sentence


def requests_of(loaded: LoadedProfile) -> tuple[list[Span], list[Span], float]:
    """Requests for all quantities over a network and at 9,600 baud, and milliseconds of the latter."""
    delay_s = loaded.profile.timing.reply_delay_s
    line = serial_cost(BAUDRATE, reply_delay_s=delay_s)
    slow = plan_requests(loaded, loaded.registers, line)
    return plan_requests(loaded, loaded.registers, tcp_cost(reply_delay_s=delay_s)), slow, line.of(slow) / 1e6


def _row(loaded: LoadedProfile) -> str:
    profile = loaded.profile
    network, line, time_ms = requests_of(loaded)
    cells = [
        profile.manufacturer,
        ", ".join([profile.model, *profile.also]),
        f"`{loaded.name}`",
        len(loaded.registers),
        len(network),
        len(line),
        f"{time_ms:.0f} ms",
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def _source(source: Source) -> str:
    title = source.title.rstrip(".")
    named = f"[{title}]({source.url})" if source.url else title
    return f"- {named}" + (f", {source.edition}" if source.edition else "")


def supported() -> str:
    """SUPPORTED.md."""
    return "\n".join(_lines([load_profile(name) for name in list_profiles()]))


def _lines(profiles: list[LoadedProfile]) -> Iterator[str]:
    profiles = sorted(profiles, key=lambda loaded: (_maker(loaded).casefold(), loaded.name))
    models = sum(1 + len(loaded.profile.also) for loaded in profiles)
    yield HEAD.format(profiles=len(profiles), models=models, makers=len({_maker(loaded) for loaded in profiles}))
    yield "| maker | model | profile | quantities | requests, network | requests, line | time |"
    yield "|---|---|---|--:|--:|--:|--:|"
    yield from map(_row, profiles)
    yield from _sunspec()
    yield "\n## Where the registers are known from"
    for maker, group in groupby(profiles, key=_maker):
        yield f"\n### {maker}"
        for loaded in group:
            yield f"\n`{loaded.name}`\n"
            yield from map(_source, loaded.profile.source)
    yield ""


SUNSPEC = """
## SunSpec

Devices that follow SunSpec need no profile from here: `energybid scan`, or `energybid profile sunspec TARGET -o FILE.toml`,
reads which models a device has and where, and makes one ([drivers/README.md](drivers/README.md#sunspec)). Models that are
not in this table are passed over.

| model | what it is | quantities | may be written |
|--:|---|--:|---|"""  # noqa: E501  one sentence


def _sunspec() -> Iterator[str]:
    yield SUNSPEC
    for model in MODELS.values():
        controls = ", ".join(control.name for control in model.controls)
        yield f"| {model.number} | {model.about} | {len(model.points) or ''} | {controls} |"


def _maker(loaded: LoadedProfile) -> str:
    return loaded.profile.manufacturer


if __name__ == "__main__":
    sys.stdout.write(supported())
