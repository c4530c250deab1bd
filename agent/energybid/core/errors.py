"""Exceptions, grouped by what the caller does about them.

One class per reaction; the message names the thing and says what to do next. The caller's own bug is a plain
``ValueError`` or ``TypeError`` and never one of these.
"""


class EnergybidError(Exception):
    """Root of everything that can go wrong outside this program."""


# ---------------------------------------------------------------- at the bus


class MeterError(EnergybidError):
    """One exchange with one meter failed."""


class BusDownError(MeterError):
    """The bus itself is gone (port vanished, connection refused or closed): reconnect with back-off."""


class NoReplyError(MeterError):
    """The meter did not answer in time: retry, then back off this meter only."""


class GarbledError(MeterError):
    """Bytes came, but not the answer (CRC, length, unit, function): flush, retry once."""


class RefusedError(MeterError):
    """The meter understood and refused: do not retry, learn."""

    def __init__(self, message: str, code: int) -> None:
        """Keep the protocol's own reason.

        Args:
            message: What was asked of whom.
            code: The protocol's exception code (Modbus Application Protocol V1.1b3, §7).
        """
        super().__init__(message)
        self.code = code


# ---------------------------------------------------------------- at the uplink


class UplinkDownError(EnergybidError):
    """The broker can not be reached or closed the connection: back off with jitter."""


class UplinkRefusedError(UplinkDownError):
    """The broker refused the credentials or the protocol version: back off, and tell the operator."""


# ---------------------------------------------------------------- at the log and the journal


class JournalError(EnergybidError):
    """The journal can not be read or written: stop; the service manager restarts the agent."""


class JournalStalledError(JournalError):
    """The disk is full, read-only or failing: nothing was stored; keep what was to be, and try again later."""


class JournalDamagedError(JournalError):
    """What the journal holds is not what was committed: quarantine it, salvage, begin a new epoch."""


class EvidenceError(EnergybidError):
    """Something signed or hashed does not check: a broken frame, proof, signature or root. Never trust it."""


class RollbackError(EvidenceError):
    """The other side holds a longer or a different log than this one: stop signing in this epoch."""


# ---------------------------------------------------------------- at start


class ConfigurationError(EnergybidError):
    """The configuration is wrong: exit 2. Carries every fault found, not only the first."""

    def __init__(self, faults: list[str]) -> None:
        """Keep every fault.

        Args:
            faults: One line each: file, key, what is wrong, what is allowed.
        """
        super().__init__("\n".join(faults))
        self.faults = faults
