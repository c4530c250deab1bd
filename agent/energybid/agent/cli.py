"""The ``energybid`` command: finds its subcommands by entry point and imports only the one that was asked for."""

import argparse
import importlib
import importlib.metadata
import os
import sys
from types import ModuleType

from energybid.core import exit_codes
from energybid.core.errors import ConfigurationError, EnergybidError, EvidenceError, JournalError

GROUP = "energybid.commands"
EPILOG = """\
exit codes:
  0  done
  1  could not be done; the message says why
  2  wrong arguments or configuration; every fault is listed
  3  evidence does not verify
  4  the journal can not be read or written
  130  stopped by Ctrl-C

Completion: eval "$(energybid completion bash)" (or zsh) in your shell's start-up file.
"""


def commands() -> dict[str, str]:
    """Name → module of every subcommand that is installed."""
    return {e.name: e.value for e in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name)}


def load(name: str, module: str) -> ModuleType:
    """Import a subcommand.

    Raises:
        EnergybidError: An extra that it needs is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("energybid"):
            raise
        raise EnergybidError(
            f"'energybid {name}' needs the package {error.name}: pip install 'energybid-edge[simulator,inspect]'"
        ) from None


def parser(only: str | None = None) -> argparse.ArgumentParser:
    """The command line; with ``only``, that subcommand alone is imported and filled in.

    Args:
        only: Name of a subcommand; None for all of them.
    """
    top = argparse.ArgumentParser(
        prog="energybid",
        description="Edge agent for energy meters: reads, signs, stores, and uploads until the utility has signed.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    subparsers = top.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for name, target in commands().items():
        if only not in {None, name}:
            continue
        try:
            module = load(name, target)
        except EnergybidError:
            if only == name:
                raise
            subparsers.add_parser(name, help="needs an extra that is not installed")
            continue
        sub = subparsers.add_parser(
            name,
            help=module.HELP,
            description=module.HELP,
            epilog=getattr(module, "EXAMPLES", None),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(sub)
        sub.set_defaults(run=module.run)
    return top


def _dispatch(arguments: list[str]) -> int:
    name = next((a for a in arguments if not a.startswith("-")), None)
    top = parser(name if name in commands() else None)
    options = top.parse_args(arguments)
    if options.version:
        sys.stdout.write(f"energybid {importlib.metadata.version('energybid-edge')}\n")
        return exit_codes.OK
    if options.command is None:
        top.print_help(sys.stderr)
        return exit_codes.USAGE
    code: int = options.run(options)
    return code


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns its exit code."""
    try:
        return _dispatch(sys.argv[1:] if arguments is None else arguments)
    except ConfigurationError as error:
        return _complain(error, exit_codes.USAGE)
    except EvidenceError as error:
        return _complain(error, exit_codes.NOT_VERIFIED)
    except JournalError as error:
        return _complain(error, exit_codes.JOURNAL)
    except (EnergybidError, OSError) as error:
        return _complain(error, exit_codes.FAILED)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    finally:
        _flush()


def _complain(error: BaseException, code: int) -> int:
    lines = error.faults if isinstance(error, ConfigurationError) else [str(error)]
    for line in lines:
        sys.stderr.write(f"energybid: {line}\n")
    return code


def _flush() -> None:
    """A reader that went away (``| head``) is no fault of ours."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
