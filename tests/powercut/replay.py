"""Replay one power cut: say what is wrong with the journal that it leaves, and keep the files for a look.

.venv/bin/python tests/powercut/replay.py 3:0:1234:7 --keep /tmp/cut
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from powercut_history import Spoilt
from powercut_judge import Campaign, Cut, memory


def main() -> int:
    parser = argparse.ArgumentParser(description="Replay one power cut.")
    parser.add_argument("cut", type=Cut.parse, help="seed:life:operation:way, as a failing test names it")
    parser.add_argument("--keep", type=Path, help="folder for the files as the power cut left them")
    parser.add_argument("--synchronous", help="the journal of the twin: NORMAL or OFF")
    parser.add_argument("--failing", action="store_true", help="some syncs fail, and what they covered is forgotten")
    parser.add_argument("--deaf", action="store_true", help="the disk of the twin, which lies about syncs")
    arguments = parser.parse_args()
    with memory() as folder:
        spoilt = Spoilt(arguments.deaf, arguments.synchronous, arguments.failing)
        campaign = Campaign(arguments.cut.seed, folder, spoilt)
        lost, fault, image = campaign.replay(arguments.cut)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        for name, data in image.items():
            (arguments.keep / f"journal.db{name}").write_bytes(data)
    sys.stdout.write(f"cut {arguments.cut}: {fault or 'nothing is wrong'}; {lost} committed entries lost\n")
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main())
