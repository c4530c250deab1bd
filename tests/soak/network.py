"""Two network namespaces joined by one cable, and what can happen to the cable.

Nothing outside takes part: the namespaces have no way to the machine's own network, and the addresses exist in them
alone.
"""

import os
import subprocess

GATEWAY_ADDRESS, UTILITY_ADDRESS = "10.83.0.1", "10.83.0.2"
CABLE = "uplink"


def _run(*command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, check=check, capture_output=True, text=True)


class Network:
    """``with Network() as network``: the gateway's side, the utility's side."""

    def __init__(self):
        self.gateway, self.utility = (f"soak{os.getpid()}-{side}" for side in ("gateway", "utility"))
        self.sides = {self.gateway: GATEWAY_ADDRESS, self.utility: UTILITY_ADDRESS}
        self.netem = False
        """Whether this kernel can lose, delay and double packets at random."""

    def __enter__(self):
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for side in self.sides:
            _run("ip", "netns", "delete", side, check=False)

    def _build(self):
        for side in self.sides:
            _run("ip", "netns", "add", side)
            _run("ip", "-n", side, "link", "set", "lo", "up")
        ends = ("netns", self.gateway, "type", "veth", "peer", "name", CABLE, "netns", self.utility)
        _run("ip", "link", "add", CABLE, *ends)
        for side, address in self.sides.items():
            _run("ip", "-n", side, "address", "add", f"{address}/30", "dev", CABLE)
            _run("ip", "-n", side, "link", "set", CABLE, "up")
        self.netem = self._queue(self.gateway, "netem", "loss", "1%")
        self.mend()

    def inside(self, side, *command):
        """``command`` as it has to be called to run on that side; it ends with this process."""
        return ("ip", "netns", "exec", side, "setpriv", "--pdeathsig", "KILL", *map(str, command))

    # ------------------------------------------------------------ faults, one at a time

    def cut(self, chance):
        """Unplugged at one end, or packets vanish in one direction only: nobody is told."""
        where = chance.choice(("unplugged at the gateway", "unplugged at the broker", "nothing arrives", "no answers"))
        if where.startswith("unplugged"):
            _run("ip", "-n", self._side(where), "link", "set", CABLE, "down")
        else:
            side = self.gateway if where == "nothing arrives" else self.utility
            _run("ip", "-n", side, "route", "add", "blackhole", f"{self._other(side)}/32")
        return where

    def slow(self, chance):
        """A thin line: 8 to 128 kbit/s and a queue of 2 s, as on a bad mobile link."""
        rate = round(8 * 2 ** chance.uniform(0, 4))
        for side in self.sides:
            self._queue(side, "tbf", "rate", f"{rate}kbit", "burst", "1600", "latency", "2s", check=True)
        return f"{rate} kbit/s"

    def lossy(self, chance):
        """Packets are lost, late and out of order; without netem, whatever meets a busy line is lost."""
        if self.netem:
            loss = round(chance.uniform(5, 30))
            shape = ("netem", "delay", "80ms", "60ms", "loss", f"{loss}%", "duplicate", "2%", "reorder", "10%")
            for side in self.sides:
                self._queue(side, *shape, check=True)
            return f"{loss} % lost"
        rate = round(16 * 2 ** chance.uniform(0, 4))
        for side in self.sides:
            self._queue(side, "tbf", "rate", f"{rate}kbit", "burst", "1600", "limit", "1600", check=True)
        return f"{rate} kbit/s, no queue"

    def mend(self):
        """As it was."""
        for side in self.sides:
            _run("tc", "-n", side, "qdisc", "del", "dev", CABLE, "root", check=False)
            _run("ip", "-n", side, "route", "del", "blackhole", f"{self._other(side)}/32", check=False)
            _run("ip", "-n", side, "link", "set", CABLE, "up")

    def _side(self, where):
        return self.gateway if where.endswith("gateway") else self.utility

    def _other(self, side):
        return UTILITY_ADDRESS if side == self.gateway else GATEWAY_ADDRESS

    @staticmethod
    def _queue(side, *shape, check=False):
        return _run("tc", "-n", side, "qdisc", "replace", "dev", CABLE, "root", *shape, check=check).returncode == 0
