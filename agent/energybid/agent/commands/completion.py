"""``energybid completion``: shell completion, made from the command line itself."""

import argparse
import sys

import shtab

from energybid.core import exit_codes

HELP = "print a completion script for bash, zsh or tcsh"
EXAMPLES = """\
examples:
  eval "$(energybid completion bash)"
  energybid completion zsh > ~/.zsh/completions/_energybid
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``completion``."""
    parser.add_argument("shell", choices=shtab.SUPPORTED_SHELLS)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from energybid.agent.cli import parser  # noqa: PLC0415  the command line imports this module

    sys.stdout.write(shtab.complete(parser(), shell=arguments.shell) + "\n")
    return exit_codes.OK
