"""Device identification (Modbus Application Protocol V1.1b3 §6.21), sans I/O: requests out, replies in.

Here live the encapsulated interface's one use that meters know, 0x2B/0x0E, and the walk over its pages. What a device
says of itself is text for people: nothing is decided here. Every length is checked, every walk is bounded.
"""

from typing import NamedTuple

from energybid.core.errors import GarbledError
from energybid.drivers.modbus.framing import PDU_MAX

FUNCTION, MEI_TYPE = 0x2B, 0x0E
"""Encapsulated interface transport, read device identification (§6.21)."""
BASIC, REGULAR, EXTENDED = 1, 2, 3
"""Streams: vendor, product and revision; what else the standard names; what the maker adds."""
VENDOR, PRODUCT, REVISION, URL, PRODUCT_NAME, MODEL_NAME, APPLICATION = range(7)
OBJECT_NAMES = ("vendor", "product-code", "revision", "url", "product-name", "model-name", "application-name")
"""Names of the objects that the standard defines, by their number (§6.21, table of objects)."""
PAGES_MAX = 32
"""Requests for one stream; the standard's objects need one or two."""

_HEADER_SIZE = 7
_OBJECT_HEADER_SIZE = 2
_MORE = 0xFF


class Page(NamedTuple):
    """One reply."""

    objects: tuple[tuple[int, bytes], ...]
    """Object identifier and value, as they stand."""
    following: int | None
    """The object to ask for next; None where this was the last page."""


def request(stream: int = BASIC, first: int = 0) -> bytes:
    """The PDU that asks for a stream, from an object on.

    Args:
        stream: BASIC, REGULAR or EXTENDED.
        first: Identifier of the first object.
    """
    return bytes((FUNCTION, MEI_TYPE, stream, first))


def reply_size(pdu: bytes) -> int | None:
    """Bytes of the reply that begins so; 0 when it can be none, None when more must come to tell.

    For serial lines, where no length field says it.
    """
    if pdu[:2] != bytes((FUNCTION, MEI_TYPE))[: len(pdu[:2])]:
        return 0
    if len(pdu) < _HEADER_SIZE:
        return None
    at = _HEADER_SIZE
    for _ in range(pdu[_HEADER_SIZE - 1]):
        if at + _OBJECT_HEADER_SIZE > len(pdu):
            return None
        at += _OBJECT_HEADER_SIZE + pdu[at + 1]
    return at


def parse(pdu: bytes) -> Page:
    """Read one reply.

    Raises:
        GarbledError: It is none: wrong type, a length that points outside, bytes left over.
    """
    if reply_size(pdu) != len(pdu):
        raise GarbledError("device identification: the lengths in the reply do not fit it")
    more, following, count = pdu[4:_HEADER_SIZE]
    if more not in {0, _MORE}:
        raise GarbledError(f"device identification: 'more follows' is {more:#04x}, not 0x00 or 0xff")
    objects, at = [], _HEADER_SIZE
    for _ in range(count):
        value_at = at + _OBJECT_HEADER_SIZE
        objects.append((pdu[at], pdu[value_at : value_at + pdu[at + 1]]))
        at = value_at + pdu[at + 1]
    return Page(tuple(objects), following if more else None)


class Walk:
    """Collects a stream over as many pages as the device makes of it."""

    def __init__(self, stream: int = BASIC) -> None:
        """Begin with the stream's first object; ``next_request`` is what to ask."""
        self._stream = stream
        self._asked = 0
        self._pages = 0
        self.objects: dict[int, bytes] = {}
        self.next_request: bytes | None = request(stream)
        """None once the stream is complete."""

    def feed(self, pdu: bytes) -> None:
        """Add a reply and decide what to ask next.

        Raises:
            GarbledError: No such reply, or one that leads in circles; what came before is kept.
        """
        self.next_request = None
        page = parse(pdu)
        self.objects.update(page.objects)
        self._pages += 1
        if page.following is None:
            return
        if page.following <= self._asked or self._pages >= PAGES_MAX:
            raise GarbledError(f"device identification: leads from object {self._asked} back to {page.following}")
        self._asked = page.following
        self.next_request = request(self._stream, page.following)


def text(value: bytes) -> str:
    """An object or a run of registers as people read it: printable ASCII without the padding, the rest as '?'."""
    plain = value.split(b"\x00\x00\x00\x00")[0].replace(b"\x00", b" ").decode("ascii", "replace")
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in plain).strip()


def names(found: dict[int, bytes]) -> dict[str, str]:
    """The objects by their names; those without one by number."""
    return {OBJECT_NAMES[i] if i < len(OBJECT_NAMES) else f"object-{i}": text(v) for i, v in sorted(found.items())}


def reply(found: dict[int, str], *, stream: int = BASIC) -> bytes:
    """The PDU of a reply that holds these objects, for a simulated device; what does not fit is left away."""
    body, count = b"", 0
    for number, value in sorted(found.items()):
        data = value.encode("ascii", "replace")[:255]
        if _HEADER_SIZE + len(body) + _OBJECT_HEADER_SIZE + len(data) > PDU_MAX:
            break
        body += bytes((number, len(data))) + data
        count += 1
    return bytes((FUNCTION, MEI_TYPE, stream, stream, 0, 0, count)) + body
