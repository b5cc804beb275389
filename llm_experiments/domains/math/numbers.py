"""Numbers as texts say them: 1,250 · $3.50 · -2/3 · 12% · three-fourths · twice."""

from __future__ import annotations

import re
import tomllib
from fractions import Fraction
from pathlib import Path

_SAID = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))["digits"]
_ONES, _TENS = _SAID["ones"].split(), _SAID["tens"].split()
_PARTS = {
    **{"half": 2, "halve": 2, "third": 3, "fourth": 4, "quarter": 4, "fifth": 5, "sixth": 6},
    **{"seventh": 7, "eighth": 8, "ninth": 9, "tenth": 10},
}
_TIMES = {"twice": 2, "thrice": 3, "double": 2, "triple": 3, "quadruple": 4, "quintuple": 5}
#: Digits, with commas between thousands and decimals; also ".5".
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
MINUS = "-−–"
CURRENCIES = "$€£¥₹₽₩₪₺₣₦฿₫₱"
_PLAIN = re.compile(rf"([{MINUS}]?)\s*[{CURRENCIES}]?\s*([{MINUS}]?)({DIGITS})(?:\s*/\s*({DIGITS}))?\s*%?")


def in_words(number: int) -> str:
    """A number below 1000 in words."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        return _TENS[number // 10] + (f"-{_ONES[number % 10]}" if number % 10 else "")
    rest = f" {in_words(number % 100)}" if number % 100 else ""
    return f"{_ONES[number // 100]} hundred{rest}"


def plain(text: str) -> Fraction | None:
    """The number that a text of digits alone is, currency, thousands' commas and percent sign aside."""
    matched = _PLAIN.fullmatch(text.strip())
    if matched is None:
        return None
    low = _of_digits(matched[4]) if matched[4] else Fraction(1)
    if low == 0:
        return None
    number = _of_digits(matched[3]) / low
    return -number if matched[1] or matched[2] else number


def _of_digits(text: str) -> Fraction:
    return Fraction(text.replace(",", ""))


def number_said(text: str) -> Fraction | None:
    """The number that a text is, in digits or in words; None where it is none."""
    text = text.strip().rstrip(".").casefold()
    if (number := plain(text)) is not None:
        return number
    said = [word for word in re.split(r"[\s-]+", text) if word != "and"]
    if said and said[-1] == "times":
        return number_said(" ".join(said[:-1]))
    if len(said) == 1 and said[0] in _TIMES:
        return Fraction(_TIMES[said[0]])
    if said and (part := _PARTS.get(said[-1].removesuffix("s"))) is not None:
        before = " ".join(said[:-1])
        how_many = Fraction(1) if before in ("", "a", "an") else number_said(before)
        return None if how_many is None else how_many / part
    total = Fraction(0)
    if not said:
        return None
    for word in said:
        if word in _ONES:
            total += _ONES.index(word)
        elif word in _TENS:
            total += 10 * _TENS.index(word)
        elif word == "hundred" and total:
            total *= 100
        else:
            return None
    return total
