"""A market as a process that can be killed: ``python killed_market.py DATABASE PORT``; rounds of a second."""

import asyncio
import random
import sys

import apsw
from energybid.core.ports import UplinkSettings
from energybid.simulator.market.operator import Operator
from energybid.simulator.market.service import Service
from energybid.simulator.market.store import Store
from energybid.simulator.market.system import RealWorld
from energybid.sync.system import Worker
from hand_made import MARKET_KEY, Gateway
from test_market_service import QUICK


async def main(path, port):
    store = Store.open(apsw.Connection(path), path)
    operator = Operator(store, QUICK, [Gateway(1).member], MARKET_KEY)
    settings = UplinkSettings(host="127.0.0.1", port=port, client_id="market", session_s=60)
    await Service(RealWorld(random=random.Random(1), offload=Worker("market")), settings, operator, store).run()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
