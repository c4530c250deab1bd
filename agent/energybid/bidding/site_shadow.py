"""Shadow prices: what the site's limits will cost in the steps to come.

Value functions look at one asset at a time; left alone, each counts on the whole connection for itself. A shadow price
on every step in which the limits would be broken makes them count on their share: it is raised where the assets
together want too much import and lowered where they want too much export, until they no longer do (the dual of the
plan, by subgradient). It changes what the assets expect, never what the round itself may do.

Needs numpy (extra ``bidding``). Pure and deterministic.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from energybid.bidding.assets import Asset, Now
from energybid.bidding.assets_stores import Battery, EvCharger, StoreAsset, Thermal, liked
from energybid.bidding.horizon import Outlook
from energybid.bidding.values import liked_w

if TYPE_CHECKING:
    from collections.abc import Sequence

    from energybid.bidding.site import Site
    from energybid.bidding.values import Array

ROUNDS = 24
"""Of raising and lowering."""
WARM_ROUNDS = 10
"""The same from shadow prices of a little earlier."""
LAST = 6
"""Rounds whose prices are averaged: where a load is all or nothing they swing about the right one."""
PACE, FASTER, SLOWER = 0.15, 1.5, 0.5
"""First step, as a part of the spread of prices; how it grows while the direction holds, and shrinks when it turns."""


def shadows(
    site: Site, prices: Sequence[float], outlook: Outlook, base_w: Sequence[int], near: Array | None = None
) -> Array:
    """What the limits cost in each step.

    Args:
        site: As it is when the round begins.
        prices: Expected, of the round and of each stage after it, money per MWh.
        outlook: Its ``step_h`` and ``later`` are used.
        base_w: Expected net import of what is not controlled, of the same steps.
        near: Shadow prices that were right a little earlier, of the same steps: they are moved less, and less often.

    Returns:
        To be added to the prices of the same steps; 0 where no limit binds.
    """
    base, plain = np.array(base_w, float), np.array(prices, float)
    warm = near is not None and bool(near.any())
    shadow, before = near.copy() if near is not None and warm else np.zeros(len(plain)), np.zeros(len(plain))
    pace = np.full(len(plain), max(1.0, float(np.ptp(plain))) * PACE * (SLOWER if warm else 1.0))
    late = []
    rounds = WARM_ROUNDS if warm else ROUNDS
    for number in range(rounds):
        wrong = np.sign(_wrong(site, base + _planned(site, plain + shadow, outlook), shadow))
        if number == 0 and not wrong.any():
            return shadow
        pace = pace * np.where(wrong * before > 0, FASTER, np.where(wrong * before < 0, SLOWER, 1.0))
        moved = shadow + pace * wrong
        # A price that turns its sign stops at 0: the two limits do not bind at once.
        shadow, before = np.where(moved * shadow < 0, 0.0, moved), wrong
        if number >= rounds - LAST:
            late.append(shadow)
    mean: Array = np.mean(late, axis=0)
    return mean


def _wrong(site: Site, net: Array, shadow: Array) -> Array:
    """Where the net import is beyond a limit, or has room left although it is charged for: above 0 asks for a rise."""
    above, below = net - site.import_limit_w, net + site.export_limit_w
    over: Array = np.maximum(above, 0.0) + np.minimum(below, 0.0)
    room = np.where(shadow > 0, np.minimum(above, 0.0), np.where(shadow < 0, np.maximum(below, 0.0), 0.0))
    return np.where(over != 0, over, room)


def _planned(site: Site, prices: Array, outlook: Outlook) -> Array:
    """Net import of all assets in each step if each does what is best for itself."""
    certain = Outlook(outlook.step_h, Outlook.certain(outlook.step_h, prices[1:].tolist()).stages, outlook.later)
    total: Array = np.sum([_path(asset, prices, certain) for asset in site.assets], axis=0)
    return total


def _path(asset: Asset, prices: Array, outlook: Outlook) -> Array:
    if isinstance(asset, Battery | EvCharger | Thermal):
        return _store_path(asset, prices, outlook)
    powers = np.zeros(len(prices))
    for step, (price, rows) in enumerate(zip(prices.tolist(), asset.ahead(outlook), strict=True)):
        now = Now(step, outlook.step_h, rows[0])
        powers[step] = liked(asset, now, price)
        asset = asset.after(now, int(powers[step]))
    return powers


def _store_path(store: StoreAsset, prices: Array, outlook: Outlook) -> Array:
    """The same, without a new asset for each step."""
    powers, state, grid, step_h = np.zeros(len(prices)), store.state, store.grid(), outlook.step_h
    for step, (price, rows) in enumerate(zip(prices.tolist(), store.ahead(outlook), strict=True)):
        keep, shift = store.drift(step, step_h)
        modes = store.modes(step, step_h)
        rest = keep * state + shift
        power_w = liked_w(modes, grid, rows[0], rest, price, step_h)
        gain = next(mode.gain for mode in modes if mode.low_w <= power_w <= mode.high_w)
        state = rest + gain * power_w
        powers[step] = power_w
    return powers
