"""What the agent does, checked and ready: plain frozen values that need no pydantic and can be pickled.

``config.py`` makes a plan from gateway.toml in one process; ``process.py`` runs it in the next, which never loads the
checking code (docs/decisions/005).
"""

from dataclasses import dataclass

from energybid.agent.market.plan import MarketPlan
from energybid.core.ports import BusPlan, UplinkSettings
from energybid.drivers.modbus.proxy.plan import ProxyPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalPlan:
    """Where and how often the log is committed."""

    path: str
    commit_interval_s: float
    """A power cut loses at most what was read in this time; 0 commits after every poll cycle."""
    keep_s: float
    """Acknowledged history that stays on the gateway at least, while there is anything else to give up."""
    keep_least_s: float = 86400.0
    """Acknowledged history that stays in any case."""
    budget: int = 2 << 30
    """Bytes on the disk, at most: database, write-ahead log and ballast."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UplinkPlan:
    """Where and how often batches go."""

    settings: UplinkSettings
    batch_interval_s: float
    window: int
    """Most batches under way without a receipt."""
    receipt_timeout_s: float
    """Without a receipt for so long, batches are sent again from the acknowledged mark."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusPlan:
    """The status file for people and tools on the gateway."""

    path: str | None
    interval_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPlan:
    """All of gateway.toml."""

    version: str
    """The agent's own."""
    tenant: str
    gateway: str
    log_key: bytes
    """PEM of the private log key."""
    headend_key: bytes
    """PEM of the head-end's public key."""
    configuration_hash: bytes
    """SHA-256 of the configuration file and of the profiles it names."""
    journal: JournalPlan
    uplink: UplinkPlan | None
    """None: log only."""
    status: StatusPlan
    buses: tuple[BusPlan, ...]
    drivers: dict[str, str]
    """Kind of bus → ``module:function`` that opens its driver."""
    json_logs: bool
    proxies: tuple[ProxyPlan, ...] = ()
    socket: str | None = None
    """Path of the UNIX socket for overrides; None: there is none."""
    trust_clock: bool = False
    """The clock counts as synchronised."""
    market: MarketPlan | None = None
    """None: it only meters."""

    @property
    def origin(self) -> str:
        """``tenant/gateway``, as checkpoints name it."""
        return f"{self.tenant}/{self.gateway}"
