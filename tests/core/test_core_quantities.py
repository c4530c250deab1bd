"""Quantities: OBIS codes, units and exponents, decimal text."""

from decimal import Decimal
from fractions import Fraction

import pytest
from energybid.core.quantities import DIGITS_MAX, UNITS, Obis, Quantity, decimal_text, exact_decimal, fraction_text
from hypothesis import given
from hypothesis import strategies as st


@given(st.binary(min_size=6, max_size=6))
def test_obis_text_reads_back(code: bytes) -> None:
    assert Obis.parse(str(Obis(code))) == Obis(code)


def test_obis_omits_an_unused_f() -> None:
    assert str(Obis.parse("1-0:1.8.0*255")) == "1-0:1.8.0"
    assert str(Obis.parse("1-0:1.8.0*1")) == "1-0:1.8.0*1"
    assert Obis.parse("1-0:1.8.0").code == bytes((1, 0, 1, 8, 0, 255))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.8.0",
        "1-0:1.8",
        "256-0:1.8.0",
        "1-0:1.8.0*256",
        "1-0:1.8.0 ",
        "1-0:-1.8.0",
        "\u0661-0:1.8.0",
        "1-0:1.8.0*",
    ],
)
def test_obis_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError, match="is not an OBIS code"):
        Obis.parse(text)


@pytest.mark.parametrize("code", [b"", bytes(5), bytes(7)])
def test_obis_has_six_bytes(code: bytes) -> None:
    with pytest.raises(ValueError, match="6 bytes"):
        Obis(code)


@pytest.mark.parametrize("unit", sorted(UNITS))
@pytest.mark.parametrize("exponent", [-18, 0, 18])
def test_quantity_takes_what_a_declaration_can_carry(unit: str, exponent: int) -> None:
    assert Quantity(obis=Obis.parse("1-0:1.8.0"), unit=unit, exponent=exponent).cumulative is False


@pytest.mark.parametrize(("unit", "exponent"), [("kWh", 0), ("", 0), ("w", 0), ("W", 19), ("W", -19)])
def test_quantity_refuses_other_units_and_exponents(unit: str, exponent: int) -> None:
    with pytest.raises(ValueError, match="is not"):
        Quantity(obis=Obis.parse("1-0:1.8.0"), unit=unit, exponent=exponent)


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-18, 18))
def test_decimal_text_is_exact(mantissa: int, exponent: int) -> None:
    text = decimal_text(mantissa, exponent)
    assert Decimal(text) == Decimal((int(mantissa < 0), tuple(map(int, str(abs(mantissa)))), exponent))
    assert len(text.partition(".")[2]) == max(0, -exponent)


@pytest.mark.parametrize(
    ("mantissa", "exponent", "text"),
    [
        (599, -1, "59.9"),
        (-5, -2, "-0.05"),
        (12, 1, "120"),
        (0, -3, "0.000"),
        (0, 2, "0"),
        (-5, 0, "-5"),
        (100, -2, "1.00"),
    ],
)
def test_decimal_text_examples(mantissa: int, exponent: int, text: str) -> None:
    assert decimal_text(mantissa, exponent) == text


@given(st.integers(-(10**30), 10**30), st.integers(0, DIGITS_MAX))
def test_the_text_of_a_decimal_number_is_that_number_again(mantissa: int, digits: int) -> None:
    value = Fraction(mantissa, 10**digits)
    assert Fraction(fraction_text(value)) == value
    assert exact_decimal(value, digits) is not None


def test_numbers_that_do_not_end_have_no_text() -> None:
    assert exact_decimal(Fraction(1, 8), 2) is None
    for value in (Fraction(1, 3), Fraction(1, 10 ** (DIGITS_MAX + 1))):
        with pytest.raises(ValueError, match="no decimal number"):
            fraction_text(value)
