"""Deterministic CBOR (RFC 8949 §4.2.1), the only serialisation of anything that is hashed or signed.

Only arrays, unsigned and negative integers, byte and text strings, null, false and true are used (no floats, no tags,
no maps outside COSE headers), so one value has one encoding. Decoding is strict: bytes that do not re-encode to
themselves are refused.
"""

from io import BytesIO
from typing import Any

import cbor2

from energybid.core.errors import EvidenceError

encode = cbor2.dumps


def decode(data: bytes) -> Any:  # noqa: ANN401  CBOR is untyped; callers check the shape
    """Decode one deterministic CBOR item that fills ``data`` exactly.

    Raises:
        EvidenceError: Not CBOR, trailing bytes, or not the deterministic encoding.
    """
    stream = BytesIO(data)
    try:
        item = cbor2.CBORDecoder(stream).decode()
        canonical = cbor2.dumps(item, canonical=True)
    except (cbor2.CBORError, ValueError, TypeError, OverflowError, RecursionError, MemoryError) as error:
        raise EvidenceError(f"not CBOR: {error}") from None
    if canonical != data:
        raise EvidenceError("CBOR is not in its deterministic encoding (RFC 8949 §4.2.1)")
    return item
