"""A real mosquitto on a free loopback port for tests, with optional TLS, passwords and persistence.

Use it as ``with Mosquitto(folder) as broker: ... broker.port``; ``kill()`` and ``start()`` again at the same port.
"""

import datetime as dt
import ipaddress
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

BINARY = shutil.which("mosquitto", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
DEADLINE_S = 10.0


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Mosquitto:
    """One broker; its port stays the same over restarts."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        password: tuple[str, str] | None = None,
        tls: "Authority | None" = None,
        client_certificates: bool = False,
        extra: str = "",
    ) -> None:
        assert BINARY, "install mosquitto (Debian: apt install mosquitto)"
        self.folder = folder
        self.port = free_port()
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} 127.0.0.1",
            "set_tcp_nodelay true",
            "max_inflight_messages 64",
            "persistence true",
            f"persistence_location {folder}/",
            "autosave_interval 1",
            "autosave_on_changes true",
            f"allow_anonymous {'false' if password else 'true'}",
            "user root",
        ]
        if password:
            file = folder / "passwords"
            file.write_text(f"{password[0]}:{password[1]}\n")
            subprocess.run(["mosquitto_passwd", "-U", str(file)], check=True, capture_output=True)
            lines.append(f"password_file {file}")
        if tls:
            certificate, key = tls.issue("localhost", folder)
            lines += [f"cafile {tls.path}", f"certfile {certificate}", f"keyfile {key}"]
            lines.append(f"require_certificate {'true' if client_certificates else 'false'}")
        self.config = folder / "mosquitto.conf"
        self.config.write_text("\n".join([*lines, extra]) + "\n")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it listens."""
        with (self.folder / "mosquitto.log").open("ab") as log:
            self.process = subprocess.Popen([str(BINARY), "-c", str(self.config)], stdout=log, stderr=log)
        deadline = time.monotonic() + DEADLINE_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert self.process.poll() is None, (self.folder / "mosquitto.log").read_text()
                assert time.monotonic() < deadline, "mosquitto does not listen"
                time.sleep(0.01)
            else:
                return

    def kill(self) -> None:
        """kill -9: nothing is said to any client."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """Stop cleanly: what it holds is on disk."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(DEADLINE_S)
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Authority:
    """A certificate authority that lives for a test."""

    def __init__(self, folder: pathlib.Path, name: str = "test authority") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            self._builder(self._name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.path = folder / "ca.pem"
        self.path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _builder(self, name: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=1))
        )

    def issue(self, name: str, folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
        """(certificate, key) files for ``name`` at 127.0.0.1."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            self._builder(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]), key.public_key())
            .add_extension(names, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        paths = folder / f"{name}.pem", folder / f"{name}.key"
        paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths
