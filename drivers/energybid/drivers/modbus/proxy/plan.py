"""What a proxy does, checked and ready: plain frozen values that can be pickled and need no pydantic."""

from dataclasses import dataclass

from energybid.core.ports import SerialEndpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Listen:
    """A TCP port for masters."""

    host: str
    """The address to listen on."""
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowed:
    """Registers or coils that masters may write."""

    unit: int
    """As the bus knows it."""
    table: str
    """``holding`` or ``coil``."""
    first: int
    """Address on the wire, 0-based."""
    count: int


HERE = ("127.0.0.0/8", "::1/128")
"""This machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyPlan:
    """One way in for other masters to one bus."""

    bus: str
    """Name of the bus."""
    listen: Listen | SerialEndpoint
    """Where masters are."""
    units: frozenset[int] | None
    """The bus's units that masters may reach; None for all."""
    renamed: tuple[tuple[int, int], ...] = ()
    """(what masters call it, which unit that is)."""
    allow: tuple[Allowed, ...] = ()
    max_age_s: float = 1.0
    """How old the registers may be that are answered without asking; 0 asks every time."""
    clients: tuple[str, ...] = HERE
    """Networks that masters may be in."""
    connections: int = 8
    """Most masters at once."""
    queue: int = 16
    """Most requests that wait."""
    rate: int = 50
    """Most requests of one master in a second."""
    wait_s: float = 1.0
    """Every request is answered within this time, if only by an exception."""
    timeout_s: float = 1.0
    """How long a unit may take to reply that is none of the agent's meters."""
    idle_s: float = 60.0
    """A connection on which no request comes for so long is closed."""
    share: float = 0.04
    """Part of the bus's time that masters get while polls wait."""

    @property
    def place(self) -> str:
        """Where it is, for people."""
        at = self.listen
        return at.device if isinstance(at, SerialEndpoint) else f"{at.host}:{at.port}"
