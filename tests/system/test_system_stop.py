"""A stop is over in five seconds, also while the agent tries to reach a broker that does not answer."""

import contextlib
import socket
import time

import pytest
from gateway_site import Site, wait_for
from test_system_faults import TCP, TCP_METERS

STOP_S = 5.0


@pytest.mark.parametrize("accepts", [True, False])
def test_sigterm_meets_an_attempt_to_connect(tmp_path, accepts):
    """One takes connections and says nothing; one has its backlog full, so that packets to it go unanswered."""
    site = Site(tmp_path, TCP, TCP_METERS)
    with contextlib.ExitStack() as stack:
        stack.callback(site.close)
        silent = stack.enter_context(socket.socket())
        silent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        silent.bind(("127.0.0.1", site.broker.port))
        silent.listen(8 if accepts else 0)
        for _ in range(0 if accepts else 3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)  # noqa: FBT003
            waiting.connect_ex(silent.getsockname())
        site.bus()
        agent = site.agent()
        wait_for(lambda: site.status().get("log", {}).get("committed", 0) > 10, "reads without a broker", agent)
        begun_s = time.monotonic()
        assert agent.stop() == 0, agent.said()
        assert time.monotonic() - begun_s < STOP_S
