"""A verifier of proof files written from docs/formats.md §13 alone: it imports nothing of energybid."""

from typing import Any

from stranger import EMPTY, cbor, checkpoint, entry, included, is_hash, is_uint, leaf, need, node, receipt, signed


def path(joined: Any) -> list[bytes]:
    need(isinstance(joined, bytes) and len(joined) % 32 == 0 and len(joined) <= 64 * 32, "path")
    return [joined[at : at + 32] for at in range(0, len(joined), 32)]


def disclosed(item: Any, size: int, root: bytes) -> tuple[int, list[Any]]:
    """(sequence, the entry's array) of an entry that the path ties to the root."""
    need(isinstance(item, list) and len(item) == 3, "disclosed entry")
    sequence, canonical, its_path = item
    need(is_uint(sequence) and isinstance(canonical, bytes), "disclosed entry")
    array = entry(canonical)
    need(included(leaf(canonical), sequence, size, path(its_path)) == root, "inclusion")
    return sequence, array


def reading_proof(file: bytes, log_pem: str, headend_pem: str | None) -> tuple[list[Any], list[Any], list[Any]]:
    """(checkpoint's fields, declaration, reading) of a file; arrays with version, type and salt."""
    need(len(file) <= 147_456, "too long")
    array = cbor(file)
    need(isinstance(array, list) and len(array) == 5 and array[0] == "energybid reading proof 1", "not a reading proof")
    _, signed_head, signed_receipt, declaration, reading = array
    need(isinstance(signed_head, bytes), "checkpoint")
    head = checkpoint(signed(signed_head, log_pem))
    if signed_receipt is not None:
        need(isinstance(signed_receipt, bytes) and headend_pem is not None and headend_pem != log_pem, "receipt")
        assert headend_pem is not None
        need(receipt(signed(signed_receipt, headend_pem))[:4] == head[:4], "the receipt is for something else")
    at, declared = disclosed(declaration, head[2], head[3])
    sequence, read = disclosed(reading, head[2], head[3])
    need(declared[:2] == [1, 2] and read[:2] == [1, 3], "types")
    need(read[3] == at < sequence, "reference")
    groups = declared[7]
    need(read[4] < len(groups) and len(groups[read[4]][1]) == len(read[10]), "group")
    return head, declared, read


def entry_proof(file: bytes, log_pem: str, headend_pem: str | None) -> tuple[list[Any], list[Any]]:
    """(checkpoint's fields, the entry's array) of a file."""
    need(len(file) <= 147_456, "too long")
    array = cbor(file)
    need(isinstance(array, list) and len(array) == 4 and array[0] == "energybid entry proof 1", "not an entry proof")
    _, signed_head, signed_receipt, item = array
    need(isinstance(signed_head, bytes), "checkpoint")
    head = checkpoint(signed(signed_head, log_pem))
    if signed_receipt is not None:
        need(isinstance(signed_receipt, bytes) and headend_pem is not None and headend_pem != log_pem, "receipt")
        assert headend_pem is not None
        need(receipt(signed(signed_receipt, headend_pem))[:4] == head[:4], "the receipt is for something else")
    return head, disclosed(item, head[2], head[3])[1]


def continues(first: int, second: int, hashes: list[bytes], first_root: bytes, second_root: bytes) -> bool:
    """RFC 9162 §2.1.4.2, its numbered steps, and what formats.md §4.4 adds for equal sizes and size 0."""
    if not 0 <= first <= second:
        return False
    if first in {0, second}:
        return not hashes and (first > 0 or first_root == EMPTY) and (first < second or first_root == second_root)
    if not hashes:  # 1
        return False
    if first & (first - 1) == 0:  # 2
        hashes = [first_root, *hashes]
    fn, sn = first - 1, second - 1  # 3
    while fn & 1:  # 4
        fn, sn = fn >> 1, sn >> 1
    fr = sr = hashes[0]  # 5
    for c in hashes[1:]:  # 6
        if sn == 0 or not is_hash(c):
            return False
        if fn & 1 or fn == sn:
            fr, sr = node(c, fr), node(c, sr)
            while not fn & 1 and fn:
                fn, sn = fn >> 1, sn >> 1
        else:
            sr = node(sr, c)
        fn, sn = fn >> 1, sn >> 1
    return fr == first_root and sr == second_root and sn == 0  # 7


def consistency_proof(file: bytes, log_pem: str) -> tuple[list[Any], list[Any]]:
    """Fields of both checkpoints."""
    need(len(file) <= 147_456, "too long")
    array = cbor(file)
    need(
        isinstance(array, list) and len(array) == 4 and array[0] == "energybid consistency proof 1",
        "not a consistency proof",
    )
    need(isinstance(array[1], bytes) and isinstance(array[2], bytes), "checkpoints")
    first, second = (checkpoint(signed(message, log_pem)) for message in array[1:3])
    need(first[:2] == second[:2], "another log")
    need(first[2] == second[2] or first[8] < second[8], "counter")
    need(continues(first[2], second[2], path(array[3]), first[3], second[3]), "consistency")
    return first, second
