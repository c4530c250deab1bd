"""The demo's MQTT broker: amqtt on a loopback port (MQTT 3.1.1), as a process of its own.

For demos and developers. It keeps nothing on disk and asks nobody's name; a utility runs a real broker.
Start it with ``python -m energybid.simulator.broker [--port N]``; it prints one JSON line once it listens.
"""

import argparse
import asyncio
import json
import logging
import sys

from amqtt.broker import Broker  # type: ignore[import-untyped]
from amqtt.contexts import BrokerConfig, ListenerConfig  # type: ignore[import-untyped]

from energybid.simulator.system import stop_event

HOST = "127.0.0.1"


def make_broker(port: int) -> Broker:
    """A broker that will listen on a loopback port; 0 lets the system choose."""
    return Broker(
        BrokerConfig(
            listeners={"default": ListenerConfig(bind=f"{HOST}:{port}", max_connections=64)},
            plugins={"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        )
    )


def listening_port(broker: Broker) -> int:
    """The port that a started broker has."""
    server = broker._servers["default"].instance  # noqa: SLF001  amqtt tells the port nowhere else
    return int(server.sockets[0].getsockname()[1])


async def _serve(port: int) -> None:
    stop = stop_event()
    broker = make_broker(port)
    await broker.start()
    sys.stdout.write(json.dumps({"event": "ready", "host": HOST, "port": listening_port(broker)}) + "\n")
    sys.stdout.flush()
    await stop.wait()
    await broker.shutdown()


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="python -m energybid.simulator.broker", description="the demo's MQTT broker")
    parser.add_argument("--port", type=int, default=0, help="loopback port; 0 lets the system choose")
    logging.basicConfig(level=logging.ERROR)
    asyncio.run(_serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
