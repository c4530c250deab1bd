"""A recorded meter (``energybid dump``) as a device on a simulated bus: it answers and refuses as the meter did."""

from pathlib import Path

from energybid.core.errors import ConfigurationError
from energybid.drivers.dump import Dump, answer
from energybid.drivers.dump_file import parse


class Recorded:
    """A meter whose registers never change. Implements ``Device``."""

    def __init__(self, dump: Dump) -> None:
        """Serve a recording."""
        self.dump = dump

    def respond(self, pdu: bytes, at_ms: int) -> bytes:  # noqa: ARG002  the same at every moment
        """The PDU of the reply or exception; empty where the meter was silent."""
        return answer(self.dump, pdu)


def load_dump(path: str) -> Dump:
    """Read a recording.

    Raises:
        ConfigurationError: Every fault in it, or that there is no such file.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError([f"{path}: {error.strerror}: make one with `energybid dump`"]) from None
    return parse(path, data)
