"""COSE_Sign1 (RFC 9052 §4.2) with Ed25519 (EdDSA, RFC 9053 §2.2) or ES256 (RFC 9053 §2.1), and the keys for it.

Always tagged, payload attached, protected header {1: alg, 4: kid}, unprotected header empty, no external data.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from energybid.core import cbor
from energybid.core.errors import EvidenceError

EDDSA, ES256 = -8, -7
SIGNATURE_SIZE = 64
ENTROPY_SIZE = 48
KID_SIZE = 8
MESSAGE_MAX = 4096
"""Longest COSE message accepted, bytes."""

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
"""SEC 2 §2.4.2."""
_ALGORITHM_BYTE = {EDDSA: b"\x27", ES256: b"\x26"}
_OPENING = b"\xd2\x84\x4d"
"""Tag 18, array of 4, byte string of 13: the protected header."""
_ALGORITHM_AT, _KID_AT, _PAYLOAD_AT = 5, 8, 17


class Signer(Protocol):
    """Signs; the key may live in a secure element."""

    @property
    def algorithm(self) -> int:
        """COSE algorithm: EDDSA or ES256."""

    @property
    def kid(self) -> bytes:
        """Key id, 8 bytes."""

    def sign(self, data: bytes) -> bytes:
        """64-byte signature as RFC 9053 lays it out."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A verification key: Ed25519 or P-256."""

    key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey

    @classmethod
    def from_pem(cls, pem: bytes) -> "PublicKey":
        """Read SubjectPublicKeyInfo PEM.

        Raises:
            ValueError: Not PEM, or another kind of key.
        """
        try:
            return cls(_supported(load_pem_public_key(pem)))
        except UnsupportedAlgorithm as error:
            raise ValueError(str(error)) from None

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo PEM."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def algorithm(self) -> int:
        """COSE algorithm: EDDSA or ES256."""
        return EDDSA if isinstance(self.key, ed25519.Ed25519PublicKey) else ES256

    def thumbprint(self) -> bytes:
        """COSE key thumbprint with SHA-256, 32 bytes (RFC 9679 §3): hash of the required parameters as a map."""
        if isinstance(self.key, ed25519.Ed25519PublicKey):
            raw = self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)
            return sha256(b"\xa3\x01\x01\x20\x06\x21\x58\x20" + raw).digest()  # {1: 1, -1: 6, -2: x}
        point = self.key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        x, y = point[1:33], point[33:]
        return sha256(
            b"\xa4\x01\x02\x20\x01\x21\x58\x20" + x + b"\x22\x58\x20" + y
        ).digest()  # {1: 2, -1: 1, -2: x, -3: y}

    @property
    def kid(self) -> bytes:
        """First 8 bytes of the thumbprint."""
        return self.thumbprint()[:KID_SIZE]

    def verify(self, signature: bytes, data: bytes) -> None:
        """Check a 64-byte signature.

        Raises:
            EvidenceError: It is not this key's signature over ``data``.
        """
        if len(signature) != SIGNATURE_SIZE:
            raise EvidenceError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
        try:
            if isinstance(self.key, ed25519.Ed25519PublicKey):
                self.key.verify(signature, data)
            else:
                r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
                self.key.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise EvidenceError(f"signature does not verify under key {self.kid.hex()}") from None


def _supported(key: object) -> ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey:
    if isinstance(key, ed25519.Ed25519PublicKey) or (
        isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    ):
        return key
    raise ValueError("only Ed25519 and P-256 keys are supported")


class PrivateKey:
    """A signing key in memory: Ed25519 or P-256. Implements Signer."""

    def __init__(self, key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> None:
        """Wrap a key of the cryptography package."""
        self._key = key
        self.public = PublicKey(_supported(key.public_key()))
        self.algorithm = self.public.algorithm
        self.kid = self.public.kid

    @classmethod
    def from_entropy(cls, entropy: bytes, algorithm: int = EDDSA) -> "PrivateKey":
        """Make a key from 48 random bytes: Ed25519 takes the first 32, P-256 reduces all (FIPS 186-5 §A.2.1).

        Raises:
            ValueError: Another number of bytes, or another algorithm.
        """
        if len(entropy) != ENTROPY_SIZE or algorithm not in _ALGORITHM_BYTE:
            raise ValueError(f"a key needs {ENTROPY_SIZE} random bytes and EDDSA or ES256")
        if algorithm == EDDSA:
            return cls(ed25519.Ed25519PrivateKey.from_private_bytes(entropy[:32]))
        return cls(ec.derive_private_key(int.from_bytes(entropy, "big") % (_P256_ORDER - 1) + 1, ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> "PrivateKey":
        """Read an unencrypted PKCS #8 PEM.

        Raises:
            ValueError: Not PEM, encrypted, or another kind of key.
        """
        try:
            key = load_pem_private_key(pem, None)
        except (TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(str(error)) from None
        if isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
            return cls(key)
        raise ValueError("only Ed25519 and P-256 keys are supported")

    def pem(self) -> bytes:
        """Unencrypted PKCS #8 PEM."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, data: bytes) -> bytes:
        """64-byte signature as RFC 9053 lays it out."""
        if isinstance(self._key, ed25519.Ed25519PrivateKey):
            return self._key.sign(data)
        r, s = decode_dss_signature(self._key.sign(data, ec.ECDSA(SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _protected(algorithm: int, kid: bytes) -> bytes:
    """The protected header {1: algorithm, 4: kid}, 13 bytes."""
    if algorithm not in _ALGORITHM_BYTE or len(kid) != KID_SIZE:
        raise EvidenceError(f"COSE_Sign1: algorithm {algorithm} or a kid of {len(kid)} bytes is not used here")
    return b"\xa2\x01" + _ALGORITHM_BYTE[algorithm] + b"\x04\x48" + kid


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure of RFC 9052 §4.4 with empty external data."""
    return cbor.encode(("Signature1", protected, b"", payload))


def sign(signer: Signer, payload: bytes) -> bytes:
    """Signature over ``payload`` alone; ``message`` puts the whole together."""
    return signer.sign(_to_be_signed(_protected(signer.algorithm, signer.kid), payload))


def low(algorithm: int, signature: bytes) -> bytes:
    """The one form of a signature by which its message may be named.

    Anybody can turn an ECDSA signature (r, s) into (r, n - s), which holds too: of the two this is the one with the
    smaller s. Ed25519 has one form only (RFC 8032 §5.1.7: S is in its range).
    """
    s = int.from_bytes(signature[32:], "big")
    if algorithm != ES256 or 2 * s <= _P256_ORDER or s >= _P256_ORDER:
        return signature
    return signature[:32] + (_P256_ORDER - s).to_bytes(32, "big")


def message(algorithm: int, kid: bytes, payload: bytes, signature: bytes) -> bytes:
    """Put the tagged COSE_Sign1 message together.

    Raises:
        EvidenceError: Another algorithm, or a kid or signature of another length.
    """
    if len(signature) != SIGNATURE_SIZE:
        raise EvidenceError(f"a signature has {SIGNATURE_SIZE} bytes, not {len(signature)}")
    return _OPENING + _protected(algorithm, kid) + b"\xa0" + cbor.encode(payload) + b"\x58\x40" + signature


def peek(data: bytes) -> tuple[bytes, bytes]:
    """(kid, payload) of a COSE_Sign1 message, **not verified**: to find the key.

    Everything but kid, payload and signature is fixed bytes, so no general CBOR decoder sees the message.

    Raises:
        EvidenceError: Not such a message in its one permitted encoding.
    """
    if len(data) > MESSAGE_MAX:
        raise EvidenceError(f"COSE message of {len(data)} bytes; at most {MESSAGE_MAX} are allowed")
    kid = data[_KID_AT : _KID_AT + KID_SIZE]
    algorithm = next((a for a, byte in _ALGORITHM_BYTE.items() if data[_ALGORITHM_AT:].startswith(byte)), 0)
    payload = cbor.decode(data[_PAYLOAD_AT : -SIGNATURE_SIZE - 2])
    if not isinstance(payload, bytes) or message(algorithm, kid, payload, data[-SIGNATURE_SIZE:]) != data:
        raise EvidenceError("not a tagged COSE_Sign1 message with {1: alg, 4: kid} protected and nothing unprotected")
    return kid, payload


def verify(data: bytes, key: PublicKey) -> bytes:
    """Payload of a COSE_Sign1 message that ``key`` signed.

    Raises:
        EvidenceError: Another shape, key or algorithm, or a bad signature.
    """
    kid, payload = peek(data)
    protected = _protected(key.algorithm, key.kid)
    if not data[len(_OPENING) :].startswith(protected):
        raise EvidenceError(f"signed by key {kid.hex()} or with its other algorithm, not by {key.kid.hex()}")
    key.verify(data[-SIGNATURE_SIZE:], _to_be_signed(protected, payload))
    return payload
