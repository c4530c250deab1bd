"""Wires between two programs that a test can listen to and disturb: a TCP connection, a serial line of two ptys."""

import os
import select
import socket
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

Mangle = Callable[[bytes], list[tuple[float, bytes]]]
"""Bytes on their way from the server → what arrives of them instead, each after so many seconds."""


def untouched(data: bytes) -> list[tuple[float, bytes]]:
    return [(0.0, data)]


class Wire(NamedTuple):
    """What a test sees of a wire."""

    near: str
    """Where the client connects: a port's number or a device."""
    asked: list[bytes]
    """From the client, in order."""
    answered: list[bytes]
    """From the server, before it was mangled."""


def _pump(client: int, server: int, stop: int, wire: Wire, mangle: Mangle, pause: threading.Event) -> None:
    while True:
        ready = select.select([client, server, stop], [], [])[0]
        if stop in ready:
            return
        try:
            if client in ready:
                data = os.read(client, 4096)
                wire.asked.append(data)
                os.write(server, data)
            if server in ready:
                data = os.read(server, 4096)
                wire.answered.append(data)
                for delay_s, piece in mangle(data):
                    if delay_s:
                        pause.wait(delay_s)
                    os.write(client, piece)
        except OSError:
            return
        if not data:
            return


@contextmanager
def _pumping(client: int, server: int, wire: Wire, mangle: Mangle) -> Iterator[None]:
    stop, stopping = os.pipe()
    pause = threading.Event()
    thread = threading.Thread(target=_pump, args=(client, server, stop, wire, mangle, pause))
    thread.start()
    try:
        yield
    finally:
        pause.set()
        os.write(stopping, b"x")
        thread.join()
        os.close(stop)
        os.close(stopping)


@contextmanager
def line(mangle: Mangle = untouched) -> Iterator[tuple[Wire, str]]:
    """A serial line: a wire, and the device that the server opens."""
    (client, near), (server, far) = os.openpty(), os.openpty()
    try:
        for end in (client, near, server, far):
            tty.setraw(end)
        wire = Wire(os.ttyname(near), [], [])
        with _pumping(client, server, wire, mangle):
            yield wire, os.ttyname(far)
    finally:
        for end in (client, near, server, far):
            os.close(end)


@contextmanager
def tap(port: int, mangle: Mangle = untouched) -> Iterator[Wire]:
    """A port that passes one connection on to another port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        wire = Wire(str(listener.getsockname()[1]), [], [])
        stop = threading.Event()

        def serve() -> None:
            while not stop.is_set():
                client, _ = listener.accept()
                with client:
                    if stop.is_set():
                        return
                    with socket.create_connection(("127.0.0.1", port)) as server:
                        _pump(client.fileno(), server.fileno(), stopped, wire, mangle, stop)

        stopped, stopping = os.pipe()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield wire
        finally:
            stop.set()
            os.write(stopping, b"x")
            with socket.create_connection(("127.0.0.1", int(wire.near))):
                pass
            thread.join()
            os.close(stopped)
            os.close(stopping)
