"""TLS for Modbus (MODBUS/TCP Security Protocol Specification V21): certificates to a context, errors to words.

Both sides show a certificate and speak TLS 1.2 or newer. The client checks the server's chain, dates and name; what the
client may do follows from the role in its certificate (extension 1.3.6.1.4.1.50316.802.1), and is up to the server. No
socket here.
"""

import ssl
from pathlib import Path

from energybid.core.ports import TlsSettings

EXPIRED, NOT_YET_VALID = 10, 9
SELF_SIGNED, SELF_SIGNED_ROOT, NO_ISSUER, LONE_LEAF = 18, 19, 20, 21
OTHER_HOST, OTHER_ADDRESS = 62, 64
"""Reasons of X509_verify_cert, openssl/x509_vfy.h."""

_UNKNOWN_ISSUER = "it is signed by nobody in ca: put the certificate of who signed it there"
_REASONS = {
    EXPIRED: "it has expired: renew it, and look whether this machine's clock is right",
    NOT_YET_VALID: "it is not valid yet: look whether this machine's clock is right",
    SELF_SIGNED: "it is signed by itself and not in ca: put it there if you trust it",
    SELF_SIGNED_ROOT: _UNKNOWN_ISSUER,
    NO_ISSUER: _UNKNOWN_ISSUER,
    LONE_LEAF: _UNKNOWN_ISSUER,
}
_REFUSALS = (
    ("CERTIFICATE_REQUIRED", "the server wants a certificate of the client: set certificate and key in tls"),
    ("UNKNOWN_CA", "the server does not know who signed our certificate: enter that authority in the server"),
    ("CERTIFICATE_EXPIRED", "the server says that our certificate has expired: renew it"),
    ("BAD_CERTIFICATE", "the server does not take our certificate: it wants another one"),
    ("CERTIFICATE_UNKNOWN", "the server does not take our certificate: it wants another one"),
    ("ACCESS_DENIED", "the server knows our certificate and lets it do nothing: give it a role in the server"),
    ("PROTOCOL_VERSION", "the server speaks no TLS 1.2 or newer: renew its firmware"),
    ("UNSUPPORTED_PROTOCOL", "the server speaks no TLS 1.2 or newer: renew its firmware"),
    ("WRONG_VERSION_NUMBER", "the server does not speak TLS on this port: is it plain Modbus TCP, usually port 502?"),
    ("HANDSHAKE_FAILURE", "the server wants a certificate of the client, or shares no cipher: set certificate and key"),
)
"""Reason of an ssl.SSLError, by a part of its name → what it means."""


def client_context(settings: TlsSettings) -> ssl.SSLContext:
    """The client's side. Files are read anew each time, so a renewed certificate is taken at the next connection.

    Raises:
        ValueError: A file can not be read or used; the message names it.
    """
    # Not create_default_context: from Python 3.13 it is strict about details that many devices' certificates lack.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # ca may be the device's own certificate
    if settings.ca is None:
        context.load_default_certs()
    else:
        _trust(context, settings.ca)
    if settings.certificate is not None:
        _show(context, settings.certificate, settings.key)
    return context


def _trust(context: ssl.SSLContext, ca: str) -> None:
    try:
        context.load_verify_locations(cadata=Path(ca).read_text(encoding="ascii", errors="replace"))
    except OSError as error:  # an SSLError is one
        raise ValueError(f"{ca}: {_what(error, 'holds no PEM certificate')}") from None


def _show(context: ssl.SSLContext, certificate: str, key: str | None) -> None:
    for path in (certificate, key):
        try:
            Path(path or certificate).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: {error.strerror}") from None
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except _EncryptedError:
        raise ValueError(f"{key or certificate}: the key is encrypted; nobody is there to enter a password") from None
    except ssl.SSLError as error:
        found = {"KEY_VALUES_MISMATCH": f"is not the key of {certificate}"}.get(error.reason or "")
        raise ValueError(f"{key or certificate}: {found or f'no PEM certificate and key that fit: {error}'}") from None


class _EncryptedError(Exception):
    """OpenSSL asks for a password."""


def _no_password() -> str:
    raise _EncryptedError


def _what(error: OSError, otherwise: str) -> str:
    return otherwise if isinstance(error, ssl.SSLError) else error.strerror or str(error)


def explain(error: Exception, name: str) -> str:
    """Why a secured connection failed, and what to do.

    Args:
        error: What was raised, or lost the connection.
        name: The name that the server's certificate must bear.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in {OTHER_HOST, OTHER_ADDRESS}:
            why = f"it is not for {name}: connect to the name that it bears, or set server_name in tls"
        else:
            why = _REASONS.get(error.verify_code, error.verify_message)
        return f"the server's certificate is not trusted: {why}"
    if isinstance(error, ssl.SSLError):
        reason = str(getattr(error, "reason", None) or error)
        return next((text for part, text in _REFUSALS if part in reason), f"TLS failed: {reason}")
    return getattr(error, "strerror", None) or str(error)


CLOSED_UNHEARD = "the server closed the connection before it said anything: does it want a certificate of the client?"
"""Said where a server does not tell that it refuses us."""
