"""``energybid keys``: make and show signing keys."""

import argparse
import json
import os
import sys
from pathlib import Path

from energybid.core import exit_codes
from energybid.core.cose import EDDSA, ES256, PrivateKey, PublicKey
from energybid.core.errors import ConfigurationError, EnergybidError
from energybid.sync.system import entropy

HELP = "make and show signing keys"
EXAMPLES = """\
examples:
  energybid keys new keys/log.pem            a private key (mode 0600), and keys/log.pub.pem beside it
  energybid keys new keys/log.pem --es256    ECDSA P-256 in place of Ed25519
  energybid keys show keys/log.pub.pem       algorithm and key id, as checkpoints and receipts name it
"""
_ALGORITHMS = {EDDSA: "Ed25519", ES256: "ES256"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``keys``."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    new = actions.add_parser("new", help="make a key pair; never overwrites")
    new.add_argument("file", type=Path, help="where the private key goes, such as keys/log.pem")
    new.add_argument("--es256", action="store_true", help="ECDSA on P-256, as secure elements have it")
    show = actions.add_parser("show", help="say which key a PEM file holds")
    show.add_argument("file", type=Path, help="a private or public key, PEM")
    for action in (new, show):
        action.add_argument("--json", action="store_true", help="print one JSON object")


def public_path(private: Path) -> Path:
    """Where the public half of keys/NAME.pem goes: keys/NAME.pub.pem."""
    return private.with_suffix(f".pub{private.suffix or '.pem'}")


def run(arguments: argparse.Namespace) -> int:
    """Make or show."""
    if arguments.action == "new":
        key = PrivateKey.from_entropy(entropy(48), ES256 if arguments.es256 else EDDSA)
        write_pair(arguments.file, key)
        return _show(key.public, public_path(arguments.file), as_json=arguments.json)
    return _show(read_public(arguments.file), arguments.file, as_json=arguments.json)


def write_pair(path: Path, key: PrivateKey) -> None:
    """Write both halves, the private one readable by its owner alone.

    Raises:
        EnergybidError: One of the files is there already.
    """
    for target, pem, mode in ((path, key.pem(), 0o600), (public_path(path), key.public.pem(), 0o644)):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        except FileExistsError:
            raise EnergybidError(f"{target} is there already; keys are never overwritten") from None
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)


def read_public(path: Path) -> PublicKey:
    """The public key in a PEM file of either half.

    Raises:
        ConfigurationError: It holds none.
    """
    try:
        pem = path.read_bytes()
        return PrivateKey.from_pem(pem).public if b"PRIVATE KEY" in pem else PublicKey.from_pem(pem)
    except OSError as error:
        raise ConfigurationError([f"{path}: {error.strerror}"]) from None
    except ValueError as error:
        raise ConfigurationError([f"{path}: {error}"]) from None


def _show(key: PublicKey, path: Path, *, as_json: bool) -> int:
    facts = {"file": str(path), "algorithm": _ALGORITHMS[key.algorithm], "kid": key.kid.hex()}
    text = json.dumps(facts) if as_json else f"{facts['file']}: {facts['algorithm']}, key id {facts['kid']}"
    sys.stdout.write(text + "\n")
    return exit_codes.OK
