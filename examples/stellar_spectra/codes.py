"""Spectral types as numbers: parsing what catalogues print, and the code of Gulati et al. (1994) that is regressed.

The code is 1000·A1 + 100·A2 + 2·A3 + 1.5, with A1 = 1..7 for O..M, A2 the subclass 0..9.5 and A3 = 0..4 for
luminosity I..V: one subclass is 100 units, one class 1000, so that M0 follows K9.5 as it does in the sky. The
luminosity moves the code by 8 units at most, far below any regression's error; a head of its own carries it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

CLASSES = "OBAFGKM"
LUMINOSITIES = ("I", "II", "III", "IV", "V")
SUBCLASS = 100.0  # code units in a subclass


class SpectralType(NamedTuple):
    """Class O..M; subclass 0..9.5, or None if not given; luminosity class I..V, or None."""

    cls: str
    sub: float | None = None
    lum: str | None = None

    def __str__(self) -> str:
        sub = "" if self.sub is None else f"{self.sub:g}"
        return self.cls + sub + (self.lum or "")

    def spaced(self) -> str:
        """As astronomers print it: "G2 V"."""
        return f"{self._replace(lum=None)} {self.lum or ''}".strip()


# A prefix of old catalogues (dM2, gK0, sdF5), the class, and what follows it.
_TYPE = re.compile(r"(?P<prefix>sd:?|esd|usd|d|g|c)?(?P<cls>[OBAFGKM])(?P<sub>\d(?:\.\d+)?(?!\d))?(?P<rest>\D.*)?$")
_OTHER_HALF = re.compile(r"^[:?]?[-/](?:[OBAFGKM]?\d(?:\.\d+)?|[OBAFGKM](?=[IV]))")  # of F7/F8, M4-5, G8/K0
_LUMINOSITY = re.compile(r"IV|VI|V|III|II|I|0(?=$|[-+:Ia])")
_PREFIX_LUMINOSITY = {"d": "V", "g": "III", "c": "I"}


def parse(text: str | None) -> SpectralType | None:
    """Spectral type printed in a catalogue, or None where it is no type O..M on the MK scale.

    Peculiarities (e, n, p, var, ...) are dropped. Of a range or a pair ("K0III-IV", "G8/K0III", "G6 IV + M6 V") the
    first, the brighter, counts. Subdwarfs ("sdF5", "F5 VI") keep class and subclass and have no luminosity class:
    the scale ends at V. White dwarfs, Wolf-Rayet, carbon and S stars, brown dwarfs and "GB" (giant branch) are None.
    """
    if not isinstance(text, str):  # an empty cell read by some table reader
        return None
    text = re.sub(r"\(.*?\)", "", text)
    text = re.sub(r"\s+", "", text)
    text = re.sub(r"^0(?=\d)", "O", text)  # MILES prints some O stars with a zero
    match = _TYPE.match(text)
    if match is None:
        return None
    prefix, cls, sub, rest = match.group("prefix", "cls", "sub", "rest")
    rest = rest or ""
    if sub is None and re.match(r"[A-HJ-UW-Z]", rest):  # "GB" (giant branch), "MS": no type; "KIII", "Am", "M..." are
        return None
    number = None if sub is None else min(float(sub), 9.5)
    found = _LUMINOSITY.search(_OTHER_HALF.sub("", rest))
    if prefix and prefix not in _PREFIX_LUMINOSITY:
        lum = None
    elif found is None:
        lum = _PREFIX_LUMINOSITY.get(prefix or "")
    elif found[0] == "VI":
        lum = None
    else:
        lum = "I" if found[0] == "0" else found[0]  # 0 and Ia+: hypergiants
    return SpectralType(cls, number, lum)


def encode(kind: SpectralType) -> float:
    """Code of a type with a subclass: B2I -> 2201.5, G9.5V -> 5959.5. An unknown luminosity counts as III.

    ValueError for a class outside O..M, a subclass missing or outside 0..9.5, a luminosity outside I..V.
    """
    lum = kind.lum or "III"
    if kind.cls not in CLASSES or len(kind.cls) != 1 or lum not in LUMINOSITIES:
        raise ValueError(f"no code for {kind!r}: class O..M and luminosity I..V are needed")
    if kind.sub is None or not 0 <= kind.sub <= 9.5:
        raise ValueError(f"no code for {kind!r}: a subclass 0..9.5 is needed")
    return 1000 * (CLASSES.index(kind.cls) + 1) + 100 * kind.sub + 2 * LUMINOSITIES.index(lum) + 1.5


def decode(code: float) -> SpectralType:
    """Nearest type on the scale, to half a subclass; a code beyond its ends gives O0 or M9.5.

    The luminosity that comes out is right for an exact code and means nothing for a predicted one.
    """
    if code != code:
        raise ValueError("a code that is not a number has no type")
    half = min(max(round((code - 1.5 - 4) / 50), 20), 159)  # half-subclasses since "class zero"; ±4: the luminosities
    lum = min(max(round((code - 1.5 - 50 * half) / 2), 0), 4)
    return SpectralType(CLASSES[half // 20 - 1], half % 20 / 2, LUMINOSITIES[lum])
