"""Names of the series in a batch, for the rig: it runs on the rig's Python, so a process of the project decodes."""

import functools
import json
import os
import pathlib
import struct
import subprocess

DECODER = """
import json, struct, sys
from energybid.core.entries import Reading
from energybid.sync.batch import decode_batch
while head := sys.stdin.buffer.read(4):
    frame = sys.stdin.buffer.read(*struct.unpack(">I", head))
    names = [
        f"{e.declaration}.{e.group}.{i}"
        for e in decode_batch(frame).entries if isinstance(e, Reading)
        for i, v in enumerate(e.values) if v is not None
    ]
    sys.stdout.write(json.dumps(names) + "\\n")
    sys.stdout.flush()
"""
_python = pathlib.Path(os.environ.get("BENCH_TMP", "/tmp/bench")) / "peers/ours/venv/bin/python"


@functools.cache
def _decoder():
    return subprocess.Popen([_python, "-c", DECODER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def values_in(topic, payload):
    """One name for each number in a batch."""
    decoder = _decoder()
    decoder.stdin.write(struct.pack(">I", len(payload)) + payload)
    decoder.stdin.flush()
    return json.loads(decoder.stdout.readline())
