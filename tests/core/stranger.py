"""A verifier written from docs/formats.md alone: it imports nothing of energybid. It shows that the page is enough.

Every function raises ValueError (Refused) where the page says that a reader must refuse.
"""

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, utils
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

Key = ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey
EMPTY = hashlib.sha256(b"").digest()


class Refused(ValueError):  # noqa: N818  a word, not an error's name
    """The reader refuses."""


def need(holds: object, what: str) -> None:
    if not holds:
        raise Refused(what)


# ---- §2


def head(data: bytes, at: int) -> tuple[int, int, int]:
    need(at < len(data), "cut off")
    major, small = data[at] >> 5, data[at] & 31
    if small < 24:
        return major, small, at + 1
    need(small < 28, "indefinite or reserved length")
    width = (1, 2, 4, 8)[small - 24]
    need(at + 1 + width <= len(data), "cut off")
    argument = int.from_bytes(data[at + 1 : at + 1 + width], "big")
    need(argument >= (24, 1 << 8, 1 << 16, 1 << 32)[small - 24], "not the shortest form")
    return major, argument, at + 1 + width


def utf8(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise Refused("not UTF-8") from None


def item(data: bytes, at: int, depth: int = 0) -> tuple[Any, int]:
    if at < len(data) and data[at] in (0xF4, 0xF5, 0xF6):
        return {0xF4: False, 0xF5: True, 0xF6: None}[data[at]], at + 1
    major, argument, at = head(data, at)
    need(major <= 4, "a map, tag, float or simple value")
    if major < 2:
        return (argument if major == 0 else -1 - argument), at
    if major < 4:
        end = at + argument
        need(end <= len(data), "cut off")
        return (data[at:end] if major == 2 else utf8(data[at:end])), end
    need(depth < 16, "too deep")
    items: list[Any] = []
    for _ in range(argument):
        value, at = item(data, at, depth + 1)
        items.append(value)
    return items, at


def cbor(data: bytes) -> Any:
    value, end = item(data, 0)
    need(end == len(data), "trailing bytes")
    return value


def byte_string(data: bytes) -> bytes:
    size = len(data)
    for limit, initial, width in ((24, 0, 0), (1 << 8, 0x58, 1), (1 << 16, 0x59, 2), (1 << 32, 0x5A, 4)):
        if size < limit:
            return (bytes([initial]) + size.to_bytes(width, "big") if width else bytes([0x40 + size])) + data
    raise Refused("too long")


def is_int(x: Any, least: int = -(2**63), most: int = 2**63 - 1) -> bool:
    return type(x) is int and least <= x <= most


def is_uint(x: Any) -> bool:
    return is_int(x, 0)


def is_bytes(x: Any, size: int) -> bool:
    return isinstance(x, bytes) and len(x) == size


def is_origin(x: Any) -> bool:
    return isinstance(x, str) and re.fullmatch(r"[A-Za-z0-9._-]{1,64}/[A-Za-z0-9._-]{1,64}", x) is not None


def is_text(x: Any) -> bool:
    return isinstance(x, str) and len(x.encode()) <= 255


# ---- §3


def is_quantity(x: Any) -> bool:
    units = ["Wh", "varh", "VAh", "W", "var", "VA", "V", "A", "Hz", "1", "deg", "Cel", "s", "m3"]
    return (
        isinstance(x, list)
        and len(x) == 4
        and (is_bytes(x[0], 6) and x[1] in units and is_int(x[2], -18, 18) and isinstance(x[3], bool))
    )


def is_list(x: Any, most: int, each: Any) -> bool:
    return isinstance(x, list) and 0 < len(x) <= most and all(map(each, x))


def is_group(x: Any) -> bool:
    return isinstance(x, list) and len(x) == 2 and is_uint(x[0]) and is_list(x[1], 1024, is_quantity)


def is_previous(x: Any) -> bool:
    return x is None or (
        isinstance(x, list) and len(x) == 3 and is_bytes(x[0], 16) and is_uint(x[1]) and is_bytes(x[2], 32)
    )


def is_clock(x: Any) -> bool:
    return is_int(x, 0, 2)


def is_hash(x: Any) -> bool:
    return is_bytes(x, 32)


def is_id(x: Any) -> bool:
    return is_bytes(x, 16)


def is_value(x: Any) -> bool:
    return x is None or is_int(x)


def is_maybe_uint(x: Any) -> bool:
    return x is None or is_uint(x)


def is_values(x: Any) -> bool:
    return is_list(x, 1024, is_value)


def is_message(x: Any) -> bool:
    return isinstance(x, bytes) and len(x) <= 4096


def is_status(x: Any) -> bool:
    return x is None or (is_list(x, 1024, lambda s: is_int(s, 0, 255)) and any(x))


FIELDS: list[list[Any]] = [
    [is_origin, is_int, is_previous],
    [is_id, is_int, is_uint, is_clock, is_text, is_hash],
    [is_text, is_text, is_hash, lambda x: x is None or is_text(x), lambda x: is_list(x, 255, is_group)],
    [is_uint, is_uint, is_int, is_uint, is_clock, is_uint, is_uint, is_values, is_status],
    [is_uint, is_uint, is_int, is_int, is_clock],
    [is_maybe_uint, is_int, is_int, is_uint, is_uint],
    [
        *(is_text, is_text, is_int, lambda x: is_int(x, -18, 18), is_text, is_value, is_text),
        *(is_uint, is_uint, is_uint, is_int, is_clock, is_uint, is_uint, is_maybe_uint),
    ],
    [is_uint, is_uint, is_message, is_uint, is_int, is_clock, is_uint, is_uint],
]


def entry(canonical: bytes) -> list[Any]:
    """The entry's array; nothing is checked in it that this reader can not know."""
    need(len(canonical) <= 65_536, "entry too long")
    array = cbor(canonical)
    need(isinstance(array, list) and len(array) >= 2 and is_uint(array[0]) and is_uint(array[1]), "not an entry")
    if array[0] != 1 or array[1] >= len(FIELDS):
        return list(array)
    checks = [is_id, *FIELDS[array[1]]]
    need(len(array) == 2 + len(checks), "number of fields")
    need(all(fits(x) for fits, x in zip(checks, array[2:], strict=True)), "a field")
    if array[1] == 3:
        values = array[10]
        status = array[11] or [0] * len(values)
        need(len(status) == len(values), "number of statuses")
        need(all((v is None) == (1 <= s <= 15) for v, s in zip(values, status, strict=True)), "status and value")
    return list(array)


# ---- §4


def seed(secret: bytes, span: int) -> bytes:
    return hmac.digest(secret, b"energybid span" + span.to_bytes(8, "big") + b"\x01", "sha256")


def salt(span_seed: bytes, sequence: int) -> bytes:
    need(len(span_seed) == 32, "seed")
    return hmac.digest(span_seed, b"energybid salt" + bytes([sequence % 256]) + b"\x01", "sha256")[0:16]


def leaf(canonical: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + canonical).digest()


def node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaves: Sequence[bytes]) -> bytes:
    if len(leaves) < 2:
        return leaves[0] if leaves else EMPTY
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return node(root(leaves[:k]), root(leaves[k:]))


def included(leaf_hash: bytes, sequence: int, size: int, proof: Sequence[bytes]) -> bytes:
    """The root that an inclusion proof leads to, by RFC 9162 §2.1.3.2."""
    need(0 <= sequence < size, "no such leaf")
    fn, sn, r = sequence, size - 1, leaf_hash
    for p in proof:
        need(sn != 0 and is_hash(p), "proof too long")
        if fn % 2 or fn == sn:
            r = node(p, r)
            while fn % 2 == 0 and fn != 0:
                fn, sn = fn >> 1, sn >> 1
        else:
            r = node(r, p)
        fn, sn = fn >> 1, sn >> 1
    need(sn == 0, "proof too short")
    return r


# ---- §5


def thumbprint(key: Key) -> bytes:
    if isinstance(key, ed25519.Ed25519PublicKey):
        x = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
        return hashlib.sha256(bytes.fromhex("a3010120062158 20") + x).digest()
    point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    start = bytes.fromhex("a40102200121 5820")
    return hashlib.sha256(start + point[1:33] + bytes.fromhex("22 5820") + point[33:]).digest()


def signed(message: bytes, pem: str) -> bytes:
    """Payload of a COSE_Sign1 message that the key signed."""
    key = load_pem_public_key(pem.encode())
    assert isinstance(key, Key)
    ed = isinstance(key, ed25519.Ed25519PublicKey)
    protected = bytes.fromhex("a201 27 0448" if ed else "a201 26 0448") + thumbprint(key)[:8]
    need(len(message) <= 4096, "message too long")
    opening = bytes.fromhex("d284 4d") + protected + b"\xa0"
    need(message.startswith(opening), "not this key's message")
    payload, end = item(message, len(opening))
    need(isinstance(payload, bytes), "payload")
    need(message[end : end + 2] == b"\x58\x40" and len(message) == end + 66, "signature")
    signature = message[end + 2 :]
    data = bytes.fromhex("84 6a") + b"Signature1" + byte_string(protected) + b"\x40" + byte_string(payload)
    verify(key, signature, data)
    return bytes(payload)


def verify(key: Key, signature: bytes, data: bytes) -> None:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, data)
        else:
            r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
            key.verify(utils.encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        raise Refused("signature") from None


def is_tree(size: Any, tree_root: Any) -> bool:
    return is_uint(size) and is_hash(tree_root) and (size != 0 or tree_root == EMPTY)


def checkpoint(payload: bytes) -> list[Any]:
    """Fields 1 to 9 of a checkpoint."""
    array = cbor(payload)
    need(isinstance(array, list) and len(array) == 10 and array[0] == "energybid checkpoint 1", "not a checkpoint")
    _, origin, epoch, size, its_root, before, before_root, time_ms, clock, counter = array
    need(is_origin(origin) and is_id(epoch) and is_tree(size, its_root) and is_tree(before, before_root), "a field")
    need(before <= size and (before < size or before_root == its_root), "the checkpoint before")
    need(is_int(time_ms) and is_clock(clock) and is_int(counter, 1), "a field")
    return array[1:]


def receipt(payload: bytes) -> list[Any]:
    """Fields 1 to 5 of a receipt."""
    array = cbor(payload)
    need(isinstance(array, list) and len(array) == 6 and array[0] == "energybid receipt 1", "not a receipt")
    need(is_origin(array[1]) and is_id(array[2]) and is_tree(array[3], array[4]) and is_int(array[5]), "a field")
    return array[1:]
