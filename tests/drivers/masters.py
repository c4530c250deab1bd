"""Masters of a proxy in virtual time: connections in memory, and Modbus TCP spoken over them."""

import asyncio
from collections import deque

from energybid.core.errors import BusDownError
from energybid.drivers.modbus.framing import Frame, MbapFramer, mbap_frame


class Connection(asyncio.Transport):
    """The proxy's end of a master's connection."""

    def __init__(self, master, peer: str):
        super().__init__({"peername": (peer, 12345)})
        self.master, self.open, self.reading = master, True, True
        self.held: deque[bytes] = deque()
        self.unread_max = 1 << 30

    def set_write_buffer_limits(self, high=None, low=None):
        self.unread_max = high

    def write(self, data):
        if self.open:
            self.master.received(bytes(data))
            if self.master.deaf and len(self.master.bytes) > self.unread_max:
                self.protocol.pause_writing()

    def deliver(self, data):
        if not self.open:
            return
        if self.reading:
            self.protocol.data_received(data)
        else:
            self.held.append(data)

    def is_reading(self):
        return self.reading

    def pause_reading(self):
        self.reading = False

    def resume_reading(self):
        self.reading = True
        while self.held and self.reading and self.open:
            self.protocol.data_received(self.held.popleft())

    def abort(self):
        if self.open:
            self.open = False
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    close = abort

    def is_closing(self):
        return not self.open


class Port:
    """Listens in memory. ``serve`` is a ``serve_bus``."""

    port = 1502

    def __init__(self):
        self.factory = None
        self.refuse = 0
        self.attempts = 0

    async def serve(self, host, port, factory):
        self.attempts += 1
        if self.refuse:
            self.refuse -= 1
            raise BusDownError("in use")
        self.factory = factory
        return self

    def close(self):
        self.factory = None

    def connect(self, peer="127.0.0.1", *, deaf=False):
        return Master(self, peer, deaf=deaf)


class Master:
    """Speaks Modbus TCP as most masters do: one request at a time."""

    def __init__(self, port, peer, *, deaf=False):
        self.deaf = deaf
        self.bytes = b""
        self.framer = MbapFramer()
        self.answers: dict[int, asyncio.Future] = {}
        self.late: list[Frame] = []
        self.number = 0
        self.connection = Connection(self, peer)
        self.connection.protocol = port.factory()
        self.connection.protocol.connection_made(self.connection)

    @property
    def open(self):
        return self.connection.open

    def received(self, data):
        self.bytes += data
        for frame in self.framer.feed(data):
            future = self.answers.pop(frame.transaction, None)
            if future is None or future.done():
                self.late.append(frame)
            else:
                future.set_result(frame)

    def send(self, data):
        self.connection.deliver(data)

    async def ask(self, unit, pdu, timeout_s=5.0):
        """The PDU of the answer."""
        self.number = (self.number + 1) % 65_536
        self.answers[self.number] = future = asyncio.get_running_loop().create_future()
        self.send(mbap_frame(self.number, unit, pdu))
        async with asyncio.timeout(timeout_s):
            frame = await future
        assert frame.unit == unit
        return frame.pdu

    async def read(self, unit, first, count, function=4, **more):
        return await self.ask(unit, bytes((function,)) + first.to_bytes(2, "big") + count.to_bytes(2, "big"), **more)
