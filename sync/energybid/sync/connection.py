"""A connection to a broker that is made again whenever it is lost. Here: when, and what a connection ended with."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

from energybid.core.errors import UplinkDownError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from random import Random

    from energybid.core.ports import Uplink

FIRST_WAIT_S = 1.0


async def keep_connected(
    connect: Callable[[], AbstractAsyncContextManager[Uplink]],
    serve: Callable[[Uplink], Awaitable[None]],
    lost: Callable[[UplinkDownError], None],
    *,
    random: Random,
    wait_max_s: float,
) -> NoReturn:
    """Serve over all connections, until cancelled or ``serve`` raises something else than ``UplinkDownError``.

    Of what the tasks of a group raise, the weightiest counts.

    Args:
        connect: Makes one connection.
        serve: Uses it until it is lost.
        lost: Told why there is none.
        random: The waiting times between attempts are random, up to a bound that doubles.
        wait_max_s: The greatest bound.
    """
    wait_s = FIRST_WAIT_S
    while True:
        try:
            async with connect() as uplink:
                wait_s = FIRST_WAIT_S
                await serve(uplink)
        except (UplinkDownError, ExceptionGroup) as error:
            cause = weightiest(error) if isinstance(error, ExceptionGroup) else error
            if not isinstance(cause, UplinkDownError):
                raise cause from error
            lost(cause)
        await asyncio.sleep(random.uniform(0, wait_s))  # full jitter
        wait_s = min(2 * wait_s, wait_max_s)


def weightiest(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one exception of a task group that decides what happens next: any other than a lost connection."""
    leaves = [weightiest(e) if isinstance(e, BaseExceptionGroup) else e for e in group.exceptions]
    return next((error for error in leaves if not isinstance(error, UplinkDownError)), leaves[0])
