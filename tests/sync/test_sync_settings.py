"""The [uplink] table: what it becomes, and every fault it can have."""

import pathlib
from typing import Any

import pytest
from energybid.core.errors import ConfigurationError
from energybid.core.ports import UplinkSettings, Will
from energybid.core.settings import check
from energybid.sync.settings import UplinkModel


def model(**keys: Any) -> UplinkModel:
    return check("gateway.toml", keys, UplinkModel)


def test_least() -> None:
    assert model(url="mqtt://broker").settings("me") == UplinkSettings(host="broker", port=1883, client_id="me")


def test_everything(tmp_path: pathlib.Path) -> None:
    (tmp_path / "password").write_text("secret\nrest\n")
    will = Will("a", b"b")
    found = model(
        url="mqtts://[::1]:999",
        ca="ca.pem",
        certificate="/etc/c.pem",
        key="k.pem",
        username="u",
        password_file="password",
        keep_alive="20 s",
        mqtt="3.1.1",
    ).settings("me", will, session_s=5, base=tmp_path)
    assert found == UplinkSettings(
        host="::1",
        port=999,
        client_id="me",
        username="u",
        password="secret",
        tls=True,
        ca=str(tmp_path / "ca.pem"),
        certificate="/etc/c.pem",
        key=str(tmp_path / "k.pem"),
        keep_alive_s=20,
        will=will,
        session_s=5,
        mqtt5=False,
    )


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"url": "broker:1883"}, "write mqtt://host:port"),
        ({"url": "http://broker"}, "write mqtt://host:port"),
        ({"url": "mqtt://user:password@broker"}, "user and password have their own keys"),
        ({"url": "mqtt://broker/path"}, "write mqtt://host:port"),
        ({"url": "mqtt://broker:0"}, "write mqtt://host:port"),
        ({"url": "mqtt://broker:70000"}, "Port out of range"),
        ({"url": "mqtt://"}, "write mqtt://host:port"),
        ({"url": "mqtts://b", "certificate": "c"}, "go together"),
        ({"url": "mqtt://b", "ca": "c"}, "need an mqtts:// url"),
        ({"url": "mqtt://b", "password_file": "p"}, "needs username"),
        ({"url": "mqtt://b", "keep_alive": "1 s"}, "greater than or equal to 5"),
        ({"url": "mqtt://b", "mqtt": "4"}, "'5' or '3.1.1'"),
        ({"url": "mqtt://b", "password": "p"}, "no such key"),
        ({}, "is missing"),
    ],
)
def test_faults(keys: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigurationError, match=fault):
        model(**keys)


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff"])
def test_password_files_that_hold_none(tmp_path: pathlib.Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "p").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"uplink\.password_file"):
        model(url="mqtt://b", username="u", password_file="p").settings("me", base=tmp_path)
