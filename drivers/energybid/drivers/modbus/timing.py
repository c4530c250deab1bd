"""How long characters and silences take on a serial line (Modbus over Serial Line V1.02 §2.5.1). Pure."""

from energybid.core.ports import Endpoint, SerialEndpoint, TcpEndpoint

SILENCE_CHARACTERS = 3.5
FAST_BAUD, FAST_SILENCE_S = 19_200, 0.00175
"""Above this rate the silence is fixed (§2.5.1.1)."""
BITS_MAX = 11
"""Of a character of RTU (§2.5.1); taken where the line lies behind a gateway."""


def character_s(endpoint: Endpoint) -> float:
    """Seconds that one character takes on the line: start, data, parity and stop bits; 0 where no line is known."""
    if isinstance(endpoint, TcpEndpoint) and endpoint.baudrate:
        return BITS_MAX / endpoint.baudrate
    if not isinstance(endpoint, SerialEndpoint):
        return 0.0
    bits = 1 + endpoint.data_bits + (endpoint.parity != "N") + endpoint.stop_bits
    return bits / endpoint.baudrate


def silence_s(endpoint: Endpoint) -> float:
    """Seconds of silence before a request (§2.5.1.1)."""
    if not isinstance(endpoint, SerialEndpoint) or endpoint.baudrate > FAST_BAUD:
        return FAST_SILENCE_S
    return SILENCE_CHARACTERS * character_s(endpoint)
