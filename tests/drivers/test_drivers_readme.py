import re
from pathlib import Path

from energybid.drivers.profile import compile_profile, load_profile

README = Path(__file__).parents[2] / "drivers" / "README.md"


def test_the_example_meter_is_a_whole_profile(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)
    path = tmp_path / "my-meter.toml"
    path.write_text(example)
    loaded = load_profile(str(path))
    (group,), compiled = compile_profile(loaded, interval_s=1)
    assert [(r.function, r.first, r.count) for r in compiled.groups[0]] == [(4, 0, 40)]
    assert [(str(q.obis), q.unit, q.exponent) for q in group.quantities] == [
        ("1-0:32.7.0", "V", -1),
        ("1-0:16.7.0", "W", 0),
        ("1-0:1.8.0", "Wh", 1),
    ]
    serial = loaded.profile.identification.serial_number
    assert serial is not None
    assert serial.register_ == 100


def test_every_module_is_in_the_table() -> None:
    package = README.parent / "energybid" / "drivers"
    table = README.read_text().split("## How it is laid out")[1]
    for path in package.rglob("*.py"):
        assert re.search(rf"`(modbus/)?{path.stem}`", table), path.stem
