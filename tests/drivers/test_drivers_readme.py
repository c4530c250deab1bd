import re
from pathlib import Path

from energybid.drivers.profile import compile_profile, load_profile

README = Path(__file__).parents[2] / "drivers" / "README.md"

EXAMPLES = re.findall(r"```toml\n(.*?)```", README.read_text(), re.DOTALL)


def test_the_example_meter_is_a_whole_profile(tmp_path: Path) -> None:
    example = EXAMPLES[0]
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


def test_what_else_a_profile_can_say_is_right(tmp_path: Path) -> None:
    example, also, more = EXAMPLES[:3]
    path = tmp_path / "my-meter.toml"
    block = '{ table = "holding", first = 0, count = 10 },'
    path.write_text(
        also
        + example.replace('unit = "W",', 'unit = "W", scale_by = ["ct-ratio"],').replace(
            "block = [", "block = [" + block
        )
        + more
    )
    loaded = load_profile(str(path))
    _, compiled = compile_profile(loaded, interval_s=1, quantities=["power"])
    assert [(r.function, r.first, r.count) for r in compiled.groups[0]] == [(3, 6, 1), (4, 12, 2)]
    assert [(w.name, w.maximum, w.safe) for w in compiled.writables] == [("export-limit", 5000, 0)]
    assert [(f.first, f.equals) for f in loaded.fingerprints] == [(200, (112,))]


def test_every_module_is_in_the_table() -> None:
    package = README.parent / "energybid" / "drivers"
    table = README.read_text().split("## How it is laid out")[1]
    for path in package.rglob("*.py"):
        assert re.search(rf"`(modbus/)?{path.stem}`", table), path.stem
