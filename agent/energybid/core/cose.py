"""COSE_Sign1 (RFC 9052 §4.2) with Ed25519 (EdDSA, RFC 9053 §2.2) or ES256 (RFC 9053 §2.1), and the keys for it.

Always tagged, payload attached, protected header {1: alg, 4: kid}, unprotected header empty, no external data.
"""

from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

import cbor2
from cryptography.exceptions import InvalidSignature
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
KID_SIZE = 8
SIGN1_TAG = 18
MESSAGE_MAX = 4096
"""Longest COSE message accepted, bytes."""


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
        return cls(_supported(load_pem_public_key(pem)))

    def pem(self) -> bytes:
        """SubjectPublicKeyInfo PEM."""
        return self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def algorithm(self) -> int:
        """COSE algorithm: EDDSA or ES256."""
        return EDDSA if isinstance(self.key, ed25519.Ed25519PublicKey) else ES256

    @property
    def kid(self) -> bytes:
        """First 8 bytes of the COSE key thumbprint with SHA-256 (RFC 9679)."""
        if isinstance(self.key, ed25519.Ed25519PublicKey):
            raw = self.key.public_bytes(Encoding.Raw, PublicFormat.Raw)
            cose_key: dict[int, int | bytes] = {1: 1, -1: 6, -2: raw}
        else:
            numbers = self.key.public_numbers()
            cose_key = {1: 2, -1: 1, -2: numbers.x.to_bytes(32, "big"), -3: numbers.y.to_bytes(32, "big")}
        return sha256(cbor2.dumps(cose_key, canonical=True)).digest()[:KID_SIZE]

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
        """Make a key from 48 random bytes (P-256 reduces them; Ed25519 takes the first 32)."""
        if algorithm == EDDSA:
            return cls(ed25519.Ed25519PrivateKey.from_private_bytes(entropy[:32]))
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # SEC 2 §2.4.2
        return cls(ec.derive_private_key(int.from_bytes(entropy[:48], "big") % (order - 1) + 1, ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> "PrivateKey":
        """Read an unencrypted PKCS #8 PEM.

        Raises:
            ValueError: Not PEM, encrypted, or another kind of key.
        """
        try:
            key = load_pem_private_key(pem, None)
        except TypeError as error:
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
    return cbor2.dumps({1: algorithm, 4: kid}, canonical=True)


def _to_be_signed(protected: bytes, payload: bytes) -> bytes:
    return cbor2.dumps(["Signature1", protected, b"", payload])


def sign(signer: Signer, payload: bytes) -> bytes:
    """Signature over ``payload`` alone; ``message`` puts the whole together."""
    return signer.sign(_to_be_signed(_protected(signer.algorithm, signer.kid), payload))


def message(algorithm: int, kid: bytes, payload: bytes, signature: bytes) -> bytes:
    """The tagged COSE_Sign1 message."""
    return cbor2.dumps(cbor2.CBORTag(SIGN1_TAG, [_protected(algorithm, kid), {}, payload, signature]))


def peek(data: bytes) -> tuple[bytes, bytes]:
    """(kid, payload) of a COSE_Sign1 message, **not verified**: to find the key.

    Raises:
        EvidenceError: Not such a message in its one permitted encoding.
    """
    if len(data) > MESSAGE_MAX:
        raise EvidenceError(f"COSE message of {len(data)} bytes; at most {MESSAGE_MAX} are allowed")
    item = cbor.decode(data)
    match item:
        case cbor2.CBORTag(
            tag=18, value=[bytes() as protected, dict() as unprotected, bytes() as payload, bytes() as signature]
        ):
            headers = cbor.decode(protected)
            if unprotected or len(signature) != SIGNATURE_SIZE:
                raise EvidenceError("COSE_Sign1: unprotected header or signature of the wrong length")
        case _:
            raise EvidenceError("not a tagged COSE_Sign1 message")
    match headers:
        case {1: int(), 4: bytes() as kid, **rest} if not rest:
            return kid, payload
    raise EvidenceError("COSE_Sign1: protected header must be {1: alg, 4: kid}")


def verify(data: bytes, key: PublicKey) -> bytes:
    """Payload of a COSE_Sign1 message that ``key`` signed.

    Raises:
        EvidenceError: Another shape, key or algorithm, or a bad signature.
    """
    kid, payload = peek(data)
    protected = _protected(key.algorithm, key.kid)
    signature = data[-SIGNATURE_SIZE:]
    if kid != key.kid:
        raise EvidenceError(f"signed by key {kid.hex()}, not by {key.kid.hex()}")
    if message(key.algorithm, kid, payload, signature) != data:
        raise EvidenceError("COSE_Sign1: algorithm does not fit the key")
    key.verify(signature, _to_be_signed(protected, payload))
    return payload
