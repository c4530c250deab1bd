"""headend.toml: its model, and the checked plan that the process runs.

Imported by commands only.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from energybid.core.cose import PrivateKey, PublicKey
from energybid.core.errors import ConfigurationError
from energybid.core.ports import UplinkSettings
from energybid.core.settings import Duration, Settings, read_toml
from energybid.headend.ledger import Registration
from energybid.sync.settings import UplinkModel
from energybid.sync.topics import checked

GATEWAYS_MAX = 100_000
KEYS_MAX = 16
Name = Annotated[str, AfterValidator(checked)]


class HeadendModel(Settings):
    """The ``[headend]`` table."""

    database: str = Field(min_length=1, max_length=4096)
    """SQLite file; created if it is not there."""
    key: str = Field(min_length=1, max_length=4096)
    """Private key that signs receipts, PEM; ``energybid keys new`` makes one."""
    client_id: Name = "energybid-headend"
    """Unique at the broker."""
    session: Duration = Field(7 * 86400.0, ge=0, le=365 * 86400)
    """How long the broker shall keep batches while the head-end is away."""
    log: Literal["human", "json"] = "human"


class GatewayModel(Settings):
    """A ``[[gateway]]`` table."""

    tenant: Name
    id: Name
    keys: list[Annotated[str, Field(min_length=1, max_length=4096)]] = Field(min_length=1, max_length=KEYS_MAX)
    """Files of the public log keys whose signatures are accepted, PEM."""


class HeadendFile(Settings):
    """headend.toml."""

    headend: HeadendModel
    uplink: UplinkModel
    gateway: list[GatewayModel] = Field(default=[], max_length=GATEWAYS_MAX)

    @model_validator(mode="after")
    def _unique(self) -> Self:
        counts = Counter(f"{g.tenant}/{g.id}" for g in self.gateway)
        twice = [origin for origin, count in counts.items() if count > 1]
        if twice:
            raise ValueError(f"gateway: listed more than once: {', '.join(twice)}")
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadendPlan:
    """What the process needs; checked."""

    database: str
    key: PrivateKey
    uplink: UplinkSettings
    gateways: tuple[Registration, ...]
    json_logs: bool


def load_plan(path: Path) -> HeadendPlan:
    """Read and check headend.toml and the keys it names. Relative paths start from its folder.

    Raises:
        ConfigurationError: Every fault found.
    """
    file = _read(path)
    base, faults = path.parent, list[str]()
    key = _private(base, file.headend.key, faults)
    gateways = tuple(
        Registration(g.tenant, g.id, tuple(_public(base, name, f"gateway[{i}].keys", faults) for name in g.keys))
        for i, g in enumerate(file.gateway)
    )
    try:
        uplink = file.uplink.settings(file.headend.client_id, session_s=int(file.headend.session), base=base)
    except ConfigurationError as error:
        faults += error.faults
    if faults or key is None:
        raise ConfigurationError([f"{path}: {fault}" for fault in faults])
    return HeadendPlan(
        database=str(base / file.headend.database),
        key=key,
        uplink=uplink,
        gateways=gateways,
        json_logs=file.headend.log == "json",
    )


def database_path(path: Path) -> Path:
    """The database that headend.toml names, without reading keys."""
    return path.parent / _read(path).headend.database


def _read(path: Path) -> HeadendFile:
    return read_toml(path, HeadendFile)


def _private(base: Path, name: str, faults: list[str]) -> PrivateKey | None:
    try:
        return PrivateKey.from_pem((base / name).read_bytes())
    except (OSError, ValueError) as error:
        faults.append(f"headend.key: {base / name}: {error}")
        return None


def _public(base: Path, name: str, key: str, faults: list[str]) -> PublicKey:
    try:
        return PublicKey.from_pem((base / name).read_bytes())
    except (OSError, ValueError) as error:
        faults.append(f"{key}: {base / name}: {error}")
        return _NO_KEY


_NO_KEY = PrivateKey.from_entropy(bytes(48)).public
"""Stands in for a key that could not be read; the plan is then refused."""
