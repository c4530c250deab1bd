"""Certificates for tests of TLS, made on the spot: authorities, servers, clients, also expired ones and strangers."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

ROLE = x509.ObjectIdentifier("1.3.6.1.4.1.50316.802.1")
"""MODBUS/TCP Security Protocol Specification V21: the role of a client, a UTF8String."""


class Authority:
    """Signs certificates into a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        builder = self._builder(self.subject, self.key).add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.path = str(folder / f"{name}.pem")
        Path(self.path).write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, days: int = 1) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + timedelta(days=min(days, 0) - 2 + (3 if days > 1 else 0)))
            .not_valid_after(now + timedelta(days=days))
        )

    def sign(self, name: str, *, address: str | None = None, days: int = 1, role: str | None = None) -> tuple[str, str]:
        """Paths of a certificate and its key.

        Args:
            name: Who it is for; also a DNS name.
            address: An IP address that it is for.
            days: Until when; negative for expired, more than 1 for not yet valid.
            role: What its holder may be, for clients.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        names += [x509.IPAddress(ip_address(address))] if address else []
        builder = self._builder(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]), key, days)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        if role:
            value = bytes((0x0C, len(role))) + role.encode()
            builder = builder.add_extension(x509.UnrecognizedExtension(ROLE, value), critical=False)
        certificate = self.folder / f"{self.name}-{name}.pem"
        certificate.write_bytes(builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
        return str(certificate), private_key(self.folder / f"{self.name}-{name}.key", key)


def private_key(path: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> str:
    protection = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection))
    return str(path)
