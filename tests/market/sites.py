"""A gateway's configuration with one asset of every kind, for tests; docs/assets.md shows the same."""

import shutil
from pathlib import Path

import energybid.simulator.household
from energybid.core.cose import PrivateKey

PROFILES = Path(energybid.simulator.household.__file__).parent / "data" / "profiles"
DOCS = Path(__file__).parents[2] / "docs"


def example() -> str:
    """The gateway.toml in docs/assets.md."""
    text = (DOCS / "assets.md").read_text(encoding="utf-8")
    return text.split("```toml\n# gateway.toml\n")[1].split("```")[0]


def site(folder: Path, text: str | None = None) -> Path:
    """Write gateway.toml, and what it names, into a folder; gives its path."""
    for profile in PROFILES.glob("*.toml"):
        shutil.copy(profile, folder)
    (folder / "keys").mkdir(exist_ok=True)
    for name in ("log", "headend", "bids", "market"):
        key = PrivateKey.from_entropy((name.encode() * 48)[:48])
        (folder / "keys" / f"{name}.pem").write_bytes(key.pem())
        (folder / "keys" / f"{name}.pub.pem").write_bytes(key.public.pem())
    path = folder / "gateway.toml"
    path.write_text(example() if text is None else text, encoding="utf-8")
    return path
