"""The SunSpec models that are understood: where their points lie and what they are as quantities. Plain data; pure.

Offsets, types and scale factors: SunSpec Alliance, information model definitions (github.com/sunspec/models), each
compared with the SunSpec Information Model Reference (workbook of 28 September 2017; models 1, 101 to 124 and 201 to
214: no difference) or with OpenEMS' DefaultSunSpecModel (models 701 to 713). An offset counts registers from the
model's identifier, so the first point behind the header of two registers has offset 2.

What is left out: power factors, for which makers differ in sign and in percent against fraction; direct current,
temperatures, states and events, which no bill is made of; apparent and reactive energy of single phases.
"""

from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

COMMON = 1
COMMON_LENGTH = 66
"""65 in devices that leave out its last register, a pad."""
HEADER = 2
"""Registers of a header: identifier and length."""
END = 0xFFFF
COMMON_TEXTS = {"manufacturer": (2, 16), "model": (18, 16), "version": (42, 8), "serial-number": (50, 16)}
"""Text → offset and number of registers in the common model."""

METER, INVERTER, STORAGE, CONTROL = "meter", "inverter", "storage", "control"

TYPES = {
    "int16": "int16",
    "uint16": "uint16",
    "int32": "int32",
    "uint32": "uint32",
    "uint64": "uint64",
    "float32": "float32",
    "enum16": "uint16",
    "bitfield16": "uint16",
    "acc32": "uint32",
    "sunssf": "int16",
}
"""SunSpec's types as those of registers."""
ABSENT = {
    "int16": 0x8000,
    "uint16": 0xFFFF,
    "int32": 0x8000_0000,
    "uint32": 0xFFFF_FFFF,
    "uint64": 0xFFFF_FFFF_FFFF_FFFF,
    "float32": 0x7FC0_0000,
    "enum16": 0xFFFF,
    "bitfield16": 0xFFFF,
    "acc32": 0,
    "sunssf": 0x8000,
}
"""Bit patterns for "not implemented", of accumulators "not accumulated" (Information Model Overview V1.8, p. 14 to 16).
Any NaN is one for float32."""


class Sign(NamedTuple):
    """Which direction of power is positive in a point, against the site's import in a reading."""

    scale: int
    by_maker: bool
    """A maker is known to have it the other way round."""


IMPORT, EXPORT, CONNECTED = Sign(1, by_maker=False), Sign(-1, by_maker=False), Sign(1, by_maker=True)
_SIGNS = {"+": IMPORT, "-": EXPORT, "±": CONNECTED}


class ScaleFactor(NamedTuple):
    """A register with a power of ten."""

    name: str
    offset: int


class Point(NamedTuple):
    """A point that becomes a quantity."""

    name: str
    offset: int
    type: str
    """SunSpec's."""
    factor: ScaleFactor | None
    core: bool
    """Wanted even where the device has no value at the moment."""
    quantity: str
    obis: str
    """Groups C, D and E."""
    unit: str
    sign: Sign

    @property
    def scale(self) -> Fraction:
        """Units of the quantity for one of the point, before its scale factor."""
        return Fraction(self.sign.scale, 100 if self.unit == "1" else 1)


class Control(NamedTuple):
    """A point that may be written. Bounds are in the unit."""

    name: str
    offset: int
    type: str
    factor: ScaleFactor | None
    scale: Fraction
    unit: str
    minimum: int
    maximum: int | None
    """None: the device's rating, and its negative for the minimum."""
    safe: int | None = None


class Model(NamedTuple):
    """A model."""

    number: int
    kind: str
    about: str
    length: int
    """Registers behind the header, as the standard has it; devices may have more, or leave out points at the end."""
    points: tuple[Point, ...] = ()
    controls: tuple[Control, ...] = ()


RATINGS = {702: (2, ScaleFactor("W_SF", 45)), 120: (3, ScaleFactor("WRtg_SF", 4))}
"""Greatest active power, uint16: WMaxRtg of model 702, WRtg of model 120; the first that is there counts."""

# Each row: point, offset, type, scale factor with its offset, "core", quantity, OBIS C.D.E, unit, sign. A star stands
# for phases A, B, C, or 1, 2, 3, whose registers follow one another ("*23" every 23 registers). C = 132 is the voltage
# between lines, 152 that of L1 and L2, and so on: OBIS leaves 128 to 199 to manufacturers.

_METER = """
A              2  int16  A_SF@6        core  current-sum                90.7.0   A     +
Aph*           3  int16  A_SF@6        -     current-l*                 31.7.0   A     +
PhV            7  int16  V_SF@15       -     voltage                    12.7.0   V     +
PhVph*         8  int16  V_SF@15       -     voltage-l*                 32.7.0   V     +
PPV           11  int16  V_SF@15       -     line-voltage               132.7.0  V     +
PPVph*        12  int16  V_SF@15       -     line-voltage-l*            152.7.0  V     +
Hz            16  int16  Hz_SF@17      core  frequency                  14.7.0   Hz    +
W             18  int16  W_SF@22       core  power                      16.7.0   W     ±
Wph*          19  int16  W_SF@22       -     power-l*                   36.7.0   W     ±
VA            23  int16  VA_SF@27      -     apparent-power             9.7.0    VA    +
VAph*         24  int16  VA_SF@27      -     apparent-power-l*          29.7.0   VA    +
VAR           28  int16  VAR_SF@32     -     reactive-power             131.7.0  var   ±
VARph*        29  int16  VAR_SF@32     -     reactive-power-l*          151.7.0  var   ±
TotWhExp      38  acc32  TotWh_SF@54   core  energy-export              2.8.0    Wh    +
TotWhExpPh*   40  acc32  TotWh_SF@54   -     energy-export-l*           22.8.0   Wh    +
TotWhImp      46  acc32  TotWh_SF@54   core  energy-import              1.8.0    Wh    +
TotWhImpPh*   48  acc32  TotWh_SF@54   -     energy-import-l*           21.8.0   Wh    +
TotVAhExp     55  acc32  TotVAh_SF@71  -     apparent-energy-export     10.8.0   VAh   +
TotVAhImp     63  acc32  TotVAh_SF@71  -     apparent-energy            9.8.0    VAh   +
TotVArhImpQ1  72  acc32  TotVArh_SF@104  -   reactive-energy-q1         5.8.0    varh  +
TotVArhImpQ2  80  acc32  TotVArh_SF@104  -   reactive-energy-q2         6.8.0    varh  +
TotVArhExpQ3  88  acc32  TotVArh_SF@104  -   reactive-energy-q3         7.8.0    varh  +
TotVArhExpQ4  96  acc32  TotVArh_SF@104  -   reactive-energy-q4         8.8.0    varh  +
"""

_METER_FLOAT = """
A              2  float32  -  core  current-sum                90.7.0   A     +
Aph*           4  float32  -  -     current-l*                 31.7.0   A     +
PhV           10  float32  -  -     voltage                    12.7.0   V     +
PhVph*        12  float32  -  -     voltage-l*                 32.7.0   V     +
PPV           18  float32  -  -     line-voltage               132.7.0  V     +
PPVph*        20  float32  -  -     line-voltage-l*            152.7.0  V     +
Hz            26  float32  -  core  frequency                  14.7.0   Hz    +
W             28  float32  -  core  power                      16.7.0   W     ±
Wph*          30  float32  -  -     power-l*                   36.7.0   W     ±
VA            36  float32  -  -     apparent-power             9.7.0    VA    +
VAph*         38  float32  -  -     apparent-power-l*          29.7.0   VA    +
VAR           44  float32  -  -     reactive-power             131.7.0  var   ±
VARph*        46  float32  -  -     reactive-power-l*          151.7.0  var   ±
TotWhExp      60  float32  -  core  energy-export              2.8.0    Wh    +
TotWhExpPh*   62  float32  -  -     energy-export-l*           22.8.0   Wh    +
TotWhImp      68  float32  -  core  energy-import              1.8.0    Wh    +
TotWhImpPh*   70  float32  -  -     energy-import-l*           21.8.0   Wh    +
TotVAhExp     76  float32  -  -     apparent-energy-export     10.8.0   VAh   +
TotVAhImp     84  float32  -  -     apparent-energy            9.8.0    VAh   +
TotVArhImpQ1  92  float32  -  -     reactive-energy-q1         5.8.0    varh  +
TotVArhImpQ2  100 float32  -  -     reactive-energy-q2         6.8.0    varh  +
TotVArhExpQ3  108 float32  -  -     reactive-energy-q3         7.8.0    varh  +
TotVArhExpQ4  116 float32  -  -     reactive-energy-q4         8.8.0    varh  +
"""

_INVERTER = """
A        2  uint16  A_SF@6     core  current-sum        90.7.0   A    +
Aph*     3  uint16  A_SF@6     -     current-l*         31.7.0   A    +
PPVph*   7  uint16  V_SF@13    -     line-voltage-l*    152.7.0  V    +
PhVph*   10 uint16  V_SF@13    -     voltage-l*         32.7.0   V    +
W        14 int16   W_SF@15    core  power              16.7.0   W    -
Hz       16 uint16  Hz_SF@17   core  frequency          14.7.0   Hz   +
VA       18 int16   VA_SF@19   -     apparent-power     9.7.0    VA   +
VAr      20 int16   VAr_SF@21  -     reactive-power     131.7.0  var  -
WH       24 acc32   WH_SF@26   core  energy-export      2.8.0    Wh   +
"""

_INVERTER_FLOAT = """
A        2  float32  -  core  current-sum        90.7.0   A    +
Aph*     4  float32  -  -     current-l*         31.7.0   A    +
PPVph*   10 float32  -  -     line-voltage-l*    152.7.0  V    +
PhVph*   16 float32  -  -     voltage-l*         32.7.0   V    +
W        22 float32  -  core  power              16.7.0   W    -
Hz       24 float32  -  core  frequency          14.7.0   Hz   +
VA       26 float32  -  -     apparent-power     9.7.0    VA   +
VAr      28 float32  -  -     reactive-power     131.7.0  var  -
WH       32 float32  -  core  energy-export      2.8.0    Wh   +
"""

_DER = """
W             10  int16   W_SF@116        core  power                   16.7.0   W     -
VA            11  int16   VA_SF@118       -     apparent-power          9.7.0    VA    +
Var           12  int16   Var_SF@119      -     reactive-power          131.7.0  var   -
A             14  int16   A_SF@113        -     current-sum             90.7.0   A     +
LLV           15  uint16  V_SF@114        -     line-voltage            132.7.0  V     +
LNV           16  uint16  V_SF@114        -     voltage                 12.7.0   V     +
Hz            17  uint32  Hz_SF@115       core  frequency               14.7.0   Hz    +
TotWhInj      19  uint64  TotWh_SF@120    core  energy-export           2.8.0    Wh    +
TotWhAbs      23  uint64  TotWh_SF@120    -     energy-import           1.8.0    Wh    +
TotVarhInj    27  uint64  TotVarh_SF@121  -     reactive-energy-export  4.8.0    varh  +
TotVarhAbs    31  uint64  TotVarh_SF@121  -     reactive-energy-import  3.8.0    varh  +
WL*23         41  int16   W_SF@116        -     power-l*                36.7.0   W     -
VAL*23        42  int16   VA_SF@118       -     apparent-power-l*       29.7.0   VA    +
VarL*23       43  int16   Var_SF@119      -     reactive-power-l*       151.7.0  var   -
AL*23         45  int16   A_SF@113        -     current-l*              31.7.0   A     +
V*23          46  uint16  V_SF@114        -     line-voltage-l*         152.7.0  V     +
VL*23         47  uint16  V_SF@114        -     voltage-l*              32.7.0   V     +
TotWhInjL*23  48  uint64  TotWh_SF@120    -     energy-export-l*        22.8.0   Wh    +
TotWhAbsL*23  52  uint64  TotWh_SF@120    -     energy-import-l*        21.8.0   Wh    +
"""

_STORAGE = """
ChaState  8   uint16  ChaState_SF@22  core  state-of-charge  135.7.0  1  +
InBatV    10  uint16  InBatV_SF@24    -     battery-voltage  136.7.0  V  +
"""

_CAPACITY = """
WHRtg    2  uint16  WH_SF@7   -     energy-capacity   137.7.0  Wh  +
WHAvail  3  uint16  WH_SF@7   core  energy-available  138.7.0  Wh  +
SoC      4  uint16  Pct_SF@8  core  state-of-charge   135.7.0  1   +
SoH      5  uint16  Pct_SF@8  -     state-of-health   139.7.0  1   +
"""

_SIZES = {"int32": 2, "uint32": 2, "acc32": 2, "float32": 2, "uint64": 4}
_PHASES = 3
_LETTERS, _LINES = (("A", "B", "C"), ("1", "2", "3")), (("AB", "BC", "CA"), ("L1L2", "L2L3", "L3L1"))
_PHASE_STEP = 20
"""C of phase n is C of phase 1 and 20 (n - 1)."""


def size(kind: str) -> int:
    """Registers of a SunSpec type."""
    return _SIZES.get(kind, 1)


def _factor(text: str) -> ScaleFactor | None:
    name, _, offset = text.partition("@")
    return ScaleFactor(name, int(offset)) if offset else None


def _points(table: str) -> Iterator[Point]:
    for row in table.strip().splitlines():
        name, at, kind, factor, core, quantity, obis, unit, sign = row.split()
        stem, star, step = name.partition("*")
        group, _, rest = obis.partition(".")
        for phase in range(_PHASES if star else 1):
            letters = _LINES[bool(step)] if "line" in quantity else _LETTERS[bool(step)]
            yield Point(
                name=stem + (letters[phase] if star else ""),
                offset=int(at) + phase * int(step or size(kind)),
                type=kind,
                factor=_factor(factor),
                core=core == "core",
                quantity=quantity.replace("*", str(phase + 1)),
                obis=f"{int(group) + _PHASE_STEP * phase}.{rest}",
                unit=unit,
                sign=_SIGNS[sign],
            )


_PERCENT = Fraction(1, 100)
_SECONDS_MAX = 43_200
"""Half a day: fits every type."""


def _on(name: str, offset: int, safe: int | None = 0) -> Control:
    return Control(name, offset, "enum16", None, Fraction(1), "1", 0, 1, safe)


def _share(name: str, offset: int, factor: str, *, kind: str = "uint16", safe: int = 1) -> Control:
    least = 0 if kind == "uint16" else -1
    return Control(name, offset, kind, _factor(factor), _PERCENT, "1", least, 1, safe)


def _seconds(name: str, offset: int, kind: str = "uint16") -> Control:
    return Control(name, offset, kind, None, Fraction(1), "s", 0, _SECONDS_MAX)


_IMMEDIATE = (
    _share("power-limit", 5, "WMaxLimPct_SF@23"),
    _seconds("power-limit-reverts-after", 7),
    _on("power-limit-enabled", 9),
)
_STORAGE_CONTROL = (
    Control("storage-control", 5, "bitfield16", None, Fraction(1), "1", 0, 3, 0),
    _share("discharge-rate", 12, "InOutWRte_SF@25", kind="int16"),
    _share("charge-rate", 13, "InOutWRte_SF@25", kind="int16"),
    _seconds("rates-revert-after", 15),
)
_DER_CONTROL = (
    _on("power-limit-enabled", 14),
    _share("power-limit", 15, "WMaxLimPct_SF@54"),
    _seconds("power-limit-reverts-after", 18, "uint32"),
    _on("power-set-enabled", 22),
    _on("power-set-in-watts", 23, None),
    Control("power-set", 24, "int32", ScaleFactor("WSet_SF", 55), Fraction(-1), "W", 0, None, 0),
    _seconds("power-set-reverts-after", 31, "uint32"),
)

_ALL = (
    Model(COMMON, CONTROL, "common: maker, model, serial number", COMMON_LENGTH),
    *(
        Model(number, INVERTER, f"inverter, {wires}", 50, tuple(_points(_INVERTER)))
        for number, wires in ((101, "single phase"), (102, "split phase"), (103, "three phases"))
    ),
    *(
        Model(number, INVERTER, f"inverter, {wires}, floating point", 60, tuple(_points(_INVERTER_FLOAT)))
        for number, wires in ((111, "single phase"), (112, "split phase"), (113, "three phases"))
    ),
    Model(120, CONTROL, "ratings", 26),
    Model(123, CONTROL, "immediate controls", 24, controls=_IMMEDIATE),
    Model(124, STORAGE, "storage", 24, tuple(_points(_STORAGE)), _STORAGE_CONTROL),
    *(
        Model(number, METER, f"meter, {wires}", 105, tuple(_points(_METER)))
        for number, wires in ((201, "single phase"), (202, "split phase"), (203, "wye"), (204, "delta"))
    ),
    *(
        Model(number, METER, f"meter, {wires}, floating point", 124, tuple(_points(_METER_FLOAT)))
        for number, wires in ((211, "single phase"), (212, "split phase"), (213, "wye"), (214, "delta"))
    ),
    Model(701, INVERTER, "DER AC measurement", 153, tuple(_points(_DER))),
    Model(702, CONTROL, "DER capacity", 50),
    Model(704, CONTROL, "DER AC controls", 65, controls=_DER_CONTROL),
    Model(713, STORAGE, "DER storage capacity", 7, tuple(_points(_CAPACITY))),
)
MODELS = {model.number: model for model in _ALL}
"""By number."""
