"""``energybid override``: a person on site wants a number, whatever market and plan want. Talks to the agent."""

import argparse
import getpass
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

from energybid.agent import system
from energybid.agent.config import load_cabinet
from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, EnergybidError
from energybid.core.settings import parse_duration

HELP = "set a number of a device by hand for a time, before market and plan"
EXAMPLES = """\
examples:
  sudo energybid override charger/limit 0 --for 2h    the car does not charge for two hours
  sudo energybid override                             what is overridden, and what can be
  sudo energybid override --release charger/limit     market and plan have it back
  sudo energybid override --release --json            all of them

The running agent writes it, reads it back and logs it. It ends by itself, and survives a restart of the agent.
Who may: root, and the group of the agent's socket (energybid).
"""
_STRANGE = re.compile(r"[^A-Za-z0-9._@-]")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``override``."""
    parser.add_argument("point", nargs="?", metavar="METER/NAME", help="a [[writable]] with a safe number")
    parser.add_argument("value", nargs="?", metavar="VALUE", help="a decimal number in its unit")
    parser.add_argument("--for", dest="span", metavar="TIME", default="1h", help="such as 30min or 2h; at most 1d (1h)")
    parser.add_argument("--release", action="store_true", help="end it; without METER/NAME all")
    parser.add_argument("-c", "--config", type=Path, default=Path("/etc/energybid/gateway.toml"), help="gateway.toml")
    parser.add_argument("--socket", type=Path, help="the agent's socket itself, without a configuration")
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object")


def run(arguments: argparse.Namespace) -> int:
    """Ask, and show what the agent says."""
    asked = _request(arguments)
    answer = ask(arguments.socket or socket_of(arguments.config), asked)
    sys.stdout.write(json.dumps(answer) + "\n" if arguments.json else render(answer))
    return exit_codes.OK


def _request(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.release:
        if arguments.value is not None:
            raise ConfigurationError(["--release takes no VALUE"])
        return {"do": "release", "point": arguments.point, "who": who()}
    if arguments.point is None:
        return {"do": "list"}
    if arguments.value is None:
        raise ConfigurationError([f"VALUE is missing: what is {arguments.point} to be?"])
    try:
        for_s = parse_duration(arguments.span)
    except ValueError as error:
        raise ConfigurationError([f"--for: {error}"]) from None
    return {"do": "hold", "point": arguments.point, "value": arguments.value, "for_s": for_s, "who": who()}


def who() -> str:
    """The person's login, for the log: also through sudo."""
    try:
        name = os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):  # no entry for this user
        name = "unknown"
    return _STRANGE.sub("-", name)[:32]


def socket_of(config: Path) -> Path:
    """Where the agent of a configuration answers.

    Raises:
        ConfigurationError: The file is wrong.
        EnergybidError: It names no socket.
    """
    path = load_cabinet(config).socket
    if path is None:
        raise EnergybidError(f"{config} names no socket: add [status] path = ... or [control] socket = ...")
    return path


def ask(path: Path, asked: dict[str, Any]) -> dict[str, Any]:
    """What the running agent answers on its socket.

    Raises:
        EnergybidError: Nobody answers, or one who is not understood: what to do; or the agent refuses, and says why.
    """
    try:
        line = system.request(str(path), json.dumps(asked).encode() + b"\n")
        answer: dict[str, Any] = json.loads(line)
    except PermissionError:
        raise EnergybidError(f"{path}: only root and the group of the agent may: use sudo") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise EnergybidError(f"{path}: nobody answers: is the agent running, and has it anything to control?") from None
    except OSError as error:
        raise EnergybidError(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise EnergybidError(f"{path}: no answer: the agent stops, or is of another version") from None
    if "error" in answer:
        raise EnergybidError(answer["error"])
    return answer


def render(answer: dict[str, Any]) -> str:
    """The answer for a person's eyes."""
    units = {point["point"]: "" if point["unit"] == "1" else f" {point['unit']}" for point in answer["points"]}
    lines = []
    for found in answer["overrides"]:
        point = found["point"]
        state = "" if found["active"] else ", NOT WRITTEN: it is tried again"
        minutes = -(-found["left_s"] // 60)
        lines.append(f"{point}: {found['value']}{units[point]} by {found['who']} for {minutes} min more{state}")
    free = sorted(units.keys() - {found["point"] for found in answer["overrides"]})
    lines += [f"not overridden: {', '.join(free)}"] if free else []
    return "\n".join(lines or ["there is nothing to override"]) + "\n"
