"""One target, guided by coverage, in a process of its own: ``python -m fuzz.one TARGET [libFuzzer's options]``.

libFuzzer ends the process; so nothing stands behind ``Fuzz``.
"""

import sys
from importlib import import_module

import atheris


def main() -> None:
    """Fuzz until libFuzzer has enough or finds something."""
    name, *options = sys.argv[1:]
    with atheris.instrument_imports(include=["energybid", "tomllib"]):
        targets = import_module("fuzz.targets")
    atheris.Setup([sys.argv[0], *options], targets.TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
