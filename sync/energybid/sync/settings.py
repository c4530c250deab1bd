"""How a broker is written in a configuration file; the agent's and the head-end's ``[uplink]`` table alike.

Imported only where a file is checked: pydantic is not needed to run.
"""

from pathlib import Path
from typing import Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import Field, field_validator, model_validator

from energybid.core.errors import ConfigurationError
from energybid.core.ports import UplinkSettings, Will
from energybid.core.settings import Duration, Settings

PORTS = {"mqtt": 1883, "mqtts": 8883}
"""URL scheme → port used where the URL names none (IANA service names mqtt, secure-mqtt)."""
KEEP_ALIVE_MAX_S = 65_535
"""Two bytes in CONNECT (MQTT 5.0 §3.1.2.10)."""


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    fits = parts.scheme in PORTS and parts.hostname and parts.path in {"", "/"} and not parts.query + parts.fragment
    if not fits or "@" in parts.netloc or parts.port == 0:
        raise ValueError("write mqtt://host:port, or mqtts://host:port for TLS; user and password have their own keys")
    return parts


class UplinkModel(Settings):
    """The ``[uplink]`` table."""

    url: str = Field(max_length=512)
    """``mqtt://host[:1883]`` or ``mqtts://host[:8883]``."""
    ca: str | None = Field(None, max_length=4096)
    """File of PEM certificates to trust; the system's where it is not given."""
    certificate: str | None = Field(None, max_length=4096)
    """File with the client's certificate, PEM."""
    key: str | None = Field(None, max_length=4096)
    """File with the client's key, PEM."""
    username: str | None = Field(None, max_length=255)
    password_file: str | None = Field(None, max_length=4096)
    """File whose first line is the password; never in the configuration itself."""
    mqtt: Literal["5", "3.1.1"] = "5"
    """Version to begin with; "5" falls back by itself, "3.1.1" saves the try."""
    keep_alive: Duration = Field(60.0, ge=5, le=KEEP_ALIVE_MAX_S)

    @field_validator("url")
    @classmethod
    def _url(cls, url: str) -> str:
        _split(url)
        return url

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key go together")
        if self.password_file is not None and self.username is None:
            raise ValueError("password_file needs username")
        if not self._tls and (self.ca or self.certificate):
            raise ValueError("ca, certificate and key need an mqtts:// url")
        return self

    @property
    def _tls(self) -> bool:
        return _split(self.url).scheme == "mqtts"

    def settings(
        self, client_id: str, will: Will | None = None, *, session_s: int = 0, base: Path = Path()
    ) -> UplinkSettings:
        """What ``connect_uplink`` takes.

        Args:
            client_id: Unique at the broker: a second client of the same id throws the first one out.
            will: What the broker publishes when the connection dies.
            session_s: How long the broker keeps subscriptions and queued messages after a disconnect.
            base: Folder that relative paths start from: the configuration file's.

        Raises:
            ConfigurationError: The password's file can not be read.
        """
        parts = _split(self.url)
        return UplinkSettings(
            host=parts.hostname or "",
            port=parts.port or PORTS[parts.scheme],
            client_id=client_id,
            username=self.username,
            password=_password(base, self.password_file),
            tls=self._tls,
            ca=_path(base, self.ca),
            certificate=_path(base, self.certificate),
            key=_path(base, self.key),
            keep_alive_s=int(self.keep_alive),
            will=will,
            session_s=session_s,
            mqtt5=self.mqtt == "5",
        )


def _path(base: Path, name: str | None) -> str | None:
    return None if name is None else str(base / name)


def _password(base: Path, name: str | None) -> str | None:
    if name is None:
        return None
    try:
        lines = (base / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError([f"uplink.password_file: {base / name}: {error}"]) from None
    if not lines or not lines[0]:
        raise ConfigurationError([f"uplink.password_file: {base / name}: its first line is empty"])
    return lines[0]
