"""COSE_Sign1 and keys: independent libraries verify what we sign; one form is accepted and every other refused."""

import itertools
from hashlib import sha256

import cbor2
import golden_core
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cwt import COSE, COSEKey
from energybid.core import cose
from energybid.core.cose import EDDSA, ES256, PrivateKey, PublicKey
from energybid.core.errors import EvidenceError
from hypothesis import given, settings
from hypothesis import strategies as st
from pycose.keys import EC2Key, OKPKey
from pycose.keys.curves import P256, Ed25519
from pycose.messages import Sign1Message

KEYS = golden_core.KEYS
NAMES = list(KEYS)
ALGORITHM = {"ed25519": "EdDSA", "es256": "ES256"}


def message(key: PrivateKey, payload: bytes) -> bytes:
    return cose.message(key.algorithm, key.kid, payload, cose.sign(key, payload))


@pytest.mark.parametrize("name", NAMES)
@given(payload=st.binary(max_size=600))
@settings(max_examples=20)
def test_verifies_what_it_signs(name: str, payload: bytes) -> None:
    signed = message(KEYS[name], payload)
    assert cose.peek(signed) == (KEYS[name].kid, payload)
    assert cose.verify(signed, KEYS[name].public) == payload
    assert signed == cbor2.dumps(cbor2.loads(signed), canonical=True)


@pytest.mark.parametrize("name", NAMES)
def test_cwt_verifies_what_we_sign(name: str) -> None:
    key = COSEKey.from_pem(KEYS[name].public.pem(), kid=KEYS[name].kid, alg=ALGORITHM[name])
    assert COSE.new().decode(message(KEYS[name], b"payload"), keys=[key]) == b"payload"


@pytest.mark.parametrize("name", NAMES)
def test_we_verify_what_cwt_signs(name: str) -> None:
    key = COSEKey.from_pem(KEYS[name].pem(), kid=KEYS[name].kid, alg=ALGORITHM[name])
    protected = {1: KEYS[name].algorithm, 4: KEYS[name].kid}
    signed = COSE.new().encode_and_sign(b"payload", key, protected=protected)
    assert cose.verify(signed, KEYS[name].public) == b"payload"


@pytest.mark.parametrize("name", NAMES)
def test_pycose_verifies_what_we_sign(name: str) -> None:
    public = KEYS[name].public.key
    if isinstance(public, ed25519.Ed25519PublicKey):
        key = OKPKey(crv=Ed25519, x=public.public_bytes(Encoding.Raw, PublicFormat.Raw))
    else:
        numbers = public.public_numbers()
        key = EC2Key(crv=P256, x=numbers.x.to_bytes(32, "big"), y=numbers.y.to_bytes(32, "big"))
    signed = Sign1Message.decode(message(KEYS[name], b"payload"))
    signed.key = key
    assert signed.verify_signature()
    assert signed.payload == b"payload"


@pytest.mark.parametrize("name", NAMES)
def test_refuses_every_flipped_bit(name: str) -> None:
    for kind in ("checkpoint", "receipt"):
        signed = golden_core.read(f"{kind}-{name}")["message"]
        number = int.from_bytes(signed, "big")
        for bit in range(8 * len(signed)):
            with pytest.raises(EvidenceError):
                cose.verify((number ^ 1 << bit).to_bytes(len(signed), "big"), KEYS[name].public)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_cut_and_longer_messages(name: str) -> None:
    signed = golden_core.read(f"receipt-{name}")["message"]
    for bad in [*(signed[:size] for size in range(len(signed))), signed + b"\0", b"\0" + signed, signed[1:]]:
        with pytest.raises(EvidenceError):
            cose.verify(bad, KEYS[name].public)


def parts(name: str) -> tuple[bytes, bytes, bytes]:
    signed = cbor2.loads(golden_core.read(f"receipt-{name}")["message"])
    return signed.value[0], signed.value[2], signed.value[3]


def sign1(protected: object, unprotected: object, payload: object, signature: object, tag: int | None = 18) -> bytes:
    array = [protected, unprotected, payload, signature]
    return cbor2.dumps(array if tag is None else cbor2.CBORTag(tag, array))


@pytest.mark.parametrize("name", NAMES)
def test_refuses_other_forms_of_the_same_message(name: str) -> None:
    protected, payload, signature = parts(name)
    key = KEYS[name]
    assert cose.verify(sign1(protected, {}, payload, signature), key.public)
    long_head = b"\xd8\x12" + sign1(protected, {}, payload, signature)[1:]
    others = [
        sign1(protected, {}, payload, signature, tag=None),
        sign1(protected, {}, payload, signature, tag=98),
        sign1(protected, {}, payload, signature, tag=17),
        sign1(protected, {4: key.kid}, payload, signature),
        sign1(protected, {99: 1}, payload, signature),
        sign1(protected, None, payload, signature),
        sign1(protected, [], payload, signature),
        sign1(protected, {}, None, signature),
        sign1(protected, {}, payload.hex(), signature),
        sign1(protected, {}, payload, signature[:63]),
        sign1(protected, {}, payload, signature + b"\0"),
        sign1(protected, {}, payload, None),
        cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload])),
        cbor2.dumps(cbor2.CBORTag(18, [protected, {}, payload, signature, None])),
        cbor2.dumps(cbor2.CBORTag(55799, cbor2.CBORTag(18, [protected, {}, payload, signature]))),
        long_head,
    ]
    for other in others:
        with pytest.raises(EvidenceError):
            cose.verify(other, key.public)


@pytest.mark.parametrize("name", NAMES)
def test_refuses_other_protected_headers_even_if_they_were_signed(name: str) -> None:
    key, payload = KEYS[name], b"payload"
    other_algorithm = EDDSA + ES256 - key.algorithm
    headers = [
        {},
        {1: key.algorithm},
        {4: key.kid},
        {1: other_algorithm, 4: key.kid},
        {1: -35, 4: key.kid},
        {True: key.algorithm, 4: key.kid},
        {1: key.algorithm, 4: key.kid[:7]},
        {1: key.algorithm, 4: key.kid + b"\0"},
        {1: key.algorithm, 4: key.kid.hex()},
        {1: key.algorithm, 4: key.kid, 2: [99], 99: True},
        {1: key.algorithm, 3: 0, 4: key.kid},
    ]
    for protected in itertools.chain(
        (cbor2.dumps(header) for header in headers), [b"", cbor2.dumps({4: key.kid, 1: key.algorithm})]
    ):
        signature = key.sign(cbor2.dumps(["Signature1", protected, b"", payload]))
        with pytest.raises(EvidenceError):
            cose.verify(sign1(protected, {}, payload, signature), key.public)


def test_refuses_other_keys_and_swapped_algorithms() -> None:
    for signing, verifying in itertools.permutations(KEYS.values(), 2):
        with pytest.raises(EvidenceError, match="signed by key"):
            cose.verify(message(signing, b"payload"), verifying.public)
    other = PrivateKey.from_entropy(b"\1" * 48)
    with pytest.raises(EvidenceError, match="signed by key"):
        cose.verify(message(other, b"payload"), KEYS["ed25519"].public)
    forged = cose.message(EDDSA, KEYS["ed25519"].kid, b"payload", cose.sign(other, b"payload"))
    with pytest.raises(EvidenceError, match="does not verify"):
        cose.verify(forged, KEYS["ed25519"].public)


def test_refuses_external_data_and_other_contexts() -> None:
    key, payload = KEYS["ed25519"], b"payload"
    protected = cbor2.dumps({1: key.algorithm, 4: key.kid})
    for signed in (["Signature1", protected, b"x", payload], ["Signature", protected, b"", payload], payload):
        signature = key.sign(cbor2.dumps(signed))
        with pytest.raises(EvidenceError, match="does not verify"):
            cose.verify(sign1(protected, {}, payload, signature), key.public)


def test_length_at_the_bound() -> None:
    key = KEYS["ed25519"]
    rest = len(message(key, bytes(1000))) - 1000
    longest = message(key, bytes(cose.MESSAGE_MAX - rest))
    assert len(longest) == cose.MESSAGE_MAX
    cose.verify(longest, key.public)
    with pytest.raises(EvidenceError, match="4097 bytes"):
        cose.verify(message(key, bytes(cose.MESSAGE_MAX - rest + 1)), key.public)


def test_message_refuses_what_no_reader_takes() -> None:
    kid, signature = bytes(8), bytes(64)
    cose.message(EDDSA, kid, b"", signature)
    for bad in ((-35, kid, b"", signature), (EDDSA, kid[1:], b"", signature), (EDDSA, kid, b"", signature[1:])):
        with pytest.raises(EvidenceError):
            cose.message(*bad)


def test_es256_refuses_signatures_out_of_range() -> None:
    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
    key = KEYS["es256"]
    for r, s in ((0, 0), (1, 0), (0, 1), (order, order), (2**256 - 1, 2**256 - 1)):
        with pytest.raises(EvidenceError, match="does not verify"):
            key.public.verify(r.to_bytes(32, "big") + s.to_bytes(32, "big"), b"data")


def test_kid_is_the_thumbprint_of_rfc_9679() -> None:
    # The example of RFC 9679 (the P-256 key of RFC 9052's examples).
    x = int("65eda5a12577c2bae829437fe338701a10aaa375e1bb5b5de108de439c08551d", 16)
    y = int("1e52ed75701163f7f9e40ddf9f341b3dc9ba860af7e0ca7ca7e9eecd0084d19c", 16)
    key = PublicKey(ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key())
    assert key.thumbprint().hex() == "496bd8afadf307e5b08c64b0421bf9dc01528a344a43bda88fadd1669da253ec"
    assert key.kid.hex() == "496bd8afadf307e5"


@pytest.mark.parametrize("name", NAMES)
def test_thumbprint_hashes_the_required_parameters(name: str) -> None:
    public = KEYS[name].public
    parameters = COSEKey.from_pem(public.pem()).to_dict()
    required = {label: parameters[label] for label in (1, -1, -2, -3) if label in parameters}
    assert public.thumbprint() == sha256(cbor2.dumps(required, canonical=True)).digest()
    assert golden_core.read("log")["keys"][name]["thumbprint"] == public.thumbprint()


@pytest.mark.parametrize("name", NAMES)
def test_keys_read_back(name: str) -> None:
    key = KEYS[name]
    assert PrivateKey.from_pem(key.pem()).kid == key.kid
    assert PublicKey.from_pem(key.public.pem()) == key.public
    assert golden_core.read("log")["keys"][name]["pem"].encode() == key.public.pem()


FOREIGN = {
    "rsa": rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "ed448": ed448.Ed448PrivateKey.generate(),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_refuses_other_kinds_of_keys(name: str) -> None:
    key = FOREIGN[name]
    with pytest.raises(ValueError, match="only Ed25519 and P-256"):
        PrivateKey.from_pem(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(ValueError, match="only Ed25519 and P-256"):
        PublicKey.from_pem(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_refuses_what_is_no_key() -> None:
    encrypted = ed25519.Ed25519PrivateKey.generate().private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    for pem in (b"", b"not PEM", encrypted, KEYS["es256"].public.pem(), KEYS["ed25519"].pem()[:60]):
        with pytest.raises(ValueError):  # noqa: PT011  the texts are the cryptography package's
            PrivateKey.from_pem(pem)
    for pem in (b"", b"not PEM", KEYS["ed25519"].pem()):
        with pytest.raises(ValueError):  # noqa: PT011
            PublicKey.from_pem(pem)
    der = b"MCowBQYDK2V7AyEAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
    unknown = b"-----BEGIN PUBLIC KEY-----\n" + der + b"\n-----END PUBLIC KEY-----\n"
    with pytest.raises(ValueError):  # noqa: PT011  an algorithm the package does not know
        PublicKey.from_pem(unknown)


@pytest.mark.parametrize(("size", "algorithm"), [(47, EDDSA), (32, ES256), (49, ES256), (48, -35)])
def test_keys_need_enough_entropy_and_a_known_algorithm(size: int, algorithm: int) -> None:
    with pytest.raises(ValueError, match="48 random bytes"):
        PrivateKey.from_entropy(bytes(size), algorithm)


def test_every_entropy_makes_a_key() -> None:
    assert {PrivateKey.from_entropy(bytes([n]) * 48, a).algorithm for n in (0, 255) for a in (EDDSA, ES256)} == {-8, -7}


def test_a_signature_has_one_form_by_which_its_message_may_be_named() -> None:
    key, order = KEYS["es256"], cose._P256_ORDER
    high = 0
    for number in range(20):
        signature = cose.sign(key, bytes([number]))
        s = int.from_bytes(signature[32:], "big")
        mirrored = signature[:32] + (order - s).to_bytes(32, "big")
        for either in (signature, mirrored):
            key.public.verify(either, cose._to_be_signed(cose._protected(ES256, key.kid), bytes([number])))
        assert cose.low(ES256, signature) == cose.low(ES256, mirrored) == min(signature, mirrored)
        high += cose.low(ES256, signature) != signature
    assert 0 < high < 20
    for same in (b"\xff" * 64, cose.sign(KEYS["ed25519"], b"")):
        assert cose.low(EDDSA, same) == same
    assert cose.low(ES256, b"\xff" * 64) == b"\xff" * 64, "no signature at all stays none"
