"""What fuzzing found stays fixed, and each target still runs: its seeds, and a few of them damaged."""

import random
import time
from pathlib import Path

import pytest
from fuzz.targets import TARGETS

FOUND = sorted(path for path in (Path(__file__).parent / "found").iterdir() if path.suffix)
HANG_S = 5
DAMAGED = 20


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_fixed(path):
    began = time.process_time()
    TARGETS[path.stem].run(path.read_bytes())
    assert time.process_time() - began < HANG_S


def damaged(chance, seed):
    data = bytearray(seed)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(data) + 1)
        match chance.randrange(3):
            case 0:
                data[at : at + 1] = chance.randbytes(1)
            case 1:
                del data[at : at + chance.randrange(1, 9)]
            case _:
                data[at:at] = data[: chance.randrange(9)]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_is_like_them(name):
    chance = random.Random(name)
    run, seeds = TARGETS[name]
    assert seeds
    run(b"")
    for seed in seeds:
        run(seed)
    for _ in range(DAMAGED):
        run(damaged(chance, chance.choice(seeds)))
