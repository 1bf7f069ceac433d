"""One file in, one `Spectrum` out: 1-D FITS, IRAF multispec, SDSS spec and spSpec, FITS tables, two-column text.

Every reader gives wavelengths in Å, ascending, fluxes as F_λ, and native arrays; whatever cannot be used becomes an
`InputError` of one line that names the file. What had to be concluded stands in the spectrum's notes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import re
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import InputError
from .preprocess import LIGHT, Spectrum

if TYPE_CHECKING:
    from astropy.io import fits

SDSS_FWHM = 2.5  # Å, about λ/2000 in the middle of the range
# Å in a unit; logarithms of Å are told apart
_UNITS = {"angstrom": 1.0, "angstroms": 1.0, "ang": 1.0, "a": 1.0, "aa": 1.0, "å": 1.0, "nm": 10.0, "nanometer": 10.0,
          "nanometers": 10.0, "um": 1e4, "µm": 1e4, "micron": 1e4, "microns": 1e4, "m": 1e10}  # fmt: skip
_RANGES = [(3000.0, 3e4, "Angstrom"), (300.0, 3000.0, "nm"), (3.3, 4.5, "log10"), (8.0, 10.3, "ln"), (0.3, 3.0, "um"),
           (3e-7, 3e-6, "m")]  # where optical spectra lie, for files that tell no unit  # fmt: skip
UNITS = ("Angstrom", "nm", "um", "m", "log10", "ln")
MEDIA = ("air", "vacuum")
_FILL_RUN = 8  # a detector does not repeat a value; so many equal pixels in a row fill a gap
_WAVE = ("wave", "wavelength", "lambda", "lam", "wl", "awav", "loglam", "log_lam", "loglambda", "log_lambda")
_FLUX = ("flux", "flam", "f_lambda", "flux_lambda", "flux_density", "intensity", "counts", "spec", "spectrum")


@dataclass(frozen=True)
class Given:
    """What the user says of a file, over what it says itself: unit and medium of the wavelengths, redshift, FWHM in Å.

    InputError if one of them cannot be.
    """

    unit: str | None = None
    medium: str | None = None
    redshift: float | None = None
    fwhm: float | None = None

    def __post_init__(self) -> None:
        if self.unit not in (None, *UNITS) or self.medium not in (None, *MEDIA):
            raise InputError(f"--unit is one of {', '.join(UNITS)}, --medium one of {', '.join(MEDIA)}")
        if self.fwhm is not None and not 0 < self.fwhm < 50:
            raise InputError(f"--fwhm {self.fwhm}: a resolution in Å, between 0 and 50, is expected")
        if self.redshift is not None and not -0.1 < self.redshift < 10:
            raise InputError(f"redshift {self.redshift:g}: a number between -0.1 and 10 is expected (velocity: km/s)")


def redshift_of(velocity: float) -> float:
    """Redshift z = v/c of a radial velocity in km/s, positive away from us."""
    return velocity / LIGHT


@dataclass
class _Raw:
    """What a format's reader found: wave and flux (n,) in the file's units, good (n,), and what else it says."""

    wave: Any
    flux: Any
    good: Any = None
    unit: str = ""
    flux_unit: str = ""
    medium: str = "air"
    redshift: float = 0.0
    name: str = ""
    sptype: str | None = None
    fwhm: float | None = None


def read(path: str | Path, given: Given | None = None) -> Spectrum:
    """Read a spectrum of any known format, told apart by content; InputError says what is wrong with it."""
    path = Path(path)
    try:
        content = _unpacked(path)
        raw = _read_fits(content) if content.startswith(b"SIMPLE  =") else _read_text(content)
        spectrum = _checked(raw, given or Given())
    except (InputError, OSError) as error:
        text = str(error) if isinstance(error, InputError) else (error.strerror or str(error))
        raise InputError(f"{path}: {text}") from None
    spectrum.name = spectrum.name or path.name
    return spectrum


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked if they are gzip's or bzip2's; InputError if that fails or nothing is there."""
    content = path.read_bytes()
    unpack = {b"\x1f\x8b": gzip.decompress, b"BZ": bz2.decompress}.get(content[:2])
    if unpack:
        try:
            content = unpack(content)
        except (OSError, EOFError, ValueError, zlib.error) as error:
            raise InputError(f"damaged compressed file: {error}") from None
    if not content:
        raise InputError("the file is empty")
    return content


def _checked(raw: _Raw, given: Given) -> Spectrum:
    """Sort out units, order, NaN and fill values."""
    try:
        if np.iscomplexobj(raw.flux):
            raise TypeError
        with np.errstate(invalid="ignore"):  # signalling NaN
            wave = np.ascontiguousarray(raw.wave, dtype=np.float64)  # FITS is big-endian: native from here on
            flux = np.ascontiguousarray(raw.flux, dtype=np.float64)
    except (ValueError, TypeError):
        raise InputError("wavelengths and fluxes are no plain numbers") from None
    good = np.ones(len(flux), dtype=bool) if raw.good is None else np.asarray(raw.good, dtype=bool)
    if not len(wave) == len(flux) == len(good):
        raise InputError(f"{len(wave)} wavelengths, {len(flux)} fluxes, {len(good)} weights: as many of each expected")
    if len(wave) < 20:
        raise InputError(f"only {len(wave)} pixels: not a spectrum")
    if not np.isfinite(wave).all() or wave.min() <= 0:
        raise InputError("wavelengths must be positive numbers")
    notes: list[str] = []
    wave = _in_angstrom(wave, raw.unit, given.unit, notes)
    steps = np.diff(wave)
    if (steps < 0).all():
        wave, flux, good, steps = wave[::-1], flux[::-1], good[::-1], -steps[::-1]
    if not (steps > 0).all():
        at = int(np.argmax(steps <= 0))
        raise InputError(f"wavelengths do not ascend: {wave[at]:g} is followed by {wave[at + 1]:g} at pixel {at + 2}")
    good = good & np.isfinite(flux) & (flux != 0) & ~_filled(flux)
    if not good.any():
        raise InputError("no pixel holds a measured flux (all are NaN, zero, equal or masked)")
    flux = _per_wavelength(np.where(good, flux, 0.0), wave, raw.flux_unit, notes)
    medium = given.medium or raw.medium
    redshift = raw.redshift if given.redshift is None else given.redshift
    if not -0.1 < redshift < 10:
        raise InputError(f"the header's redshift {redshift:g} is absurd; give --redshift or --velocity")
    if medium == "vacuum":
        notes.append("vacuum")
    if redshift:
        notes.append(f"z={redshift:.6g}")
    return Spectrum(wave, flux, good, raw.name, given.fwhm or raw.fwhm, raw.sptype, medium, redshift, notes)


def _in_angstrom(wave: np.ndarray, stated: str, given: str | None, notes: list[str]) -> np.ndarray:
    """Wavelengths (n,) in Å: of the unit that is given, else stated, else told from where an optical spectrum lies."""
    unit = given or stated
    if not unit:
        middle = float(np.median(wave))
        unit = next((name for low, high, name in _RANGES if low <= middle < high), "Angstrom")
        if unit != "Angstrom":
            notes.append(f"unit {unit} concluded")
    name = unit.strip().lower()
    if name.startswith(("log", "ln")):
        if wave.max() > 20:
            raise InputError(f"logarithms of wavelengths up to {wave.max():g} are absurd")
        return np.exp(wave) if name.startswith("ln") else 10.0**wave
    if name not in _UNITS:
        raise InputError(f"unknown unit of wavelength {unit!r}; known are {', '.join(UNITS)}")
    return wave * _UNITS[name]


def _per_wavelength(flux: np.ndarray, wave: np.ndarray, unit: str, notes: list[str]) -> np.ndarray:
    """F_λ (n,) in any unit: F_ν (Jy, ... per Hz) becomes F_ν/λ²; what is no known unit is left as it is."""
    from astropy import units

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        known = units.Unit(unit, parse_strict="silent")
    if "mag" in unit.lower():
        raise InputError(f"magnitudes ({unit!r}) where fluxes are expected")
    if known.is_equivalent(units.Jy):
        notes.append("from F_nu")
        return flux * (5550 / wave) ** 2
    return flux


def _filled(flux: np.ndarray) -> np.ndarray:
    """Pixels (n,) in a run of at least eight equal values, such as the 0.0001 in the gaps of Indo-US spectra."""
    starts = np.flatnonzero(np.concatenate([[True], flux[1:] != flux[:-1]]))
    lengths = np.diff(np.append(starts, len(flux)))
    return np.repeat(lengths >= _FILL_RUN, lengths)


# --- text ----------------------------------------------------------------------------------------------------------
_DECIMAL_COMMA = re.compile(r"[-+]?\d+(?:,\d+)?(?:[eEdD][-+]?\d+)?$")
_UNIT_WORD = re.compile(r"(?<![A-Za-z])(angstroms?|nm|um|µm|microns?|log10)(?![A-Za-z])", re.IGNORECASE)


def _read_text(content: bytes) -> _Raw:
    """Two columns, wavelength and flux; more columns, comments (# ! %), title lines and commas are allowed.

    A title line that names its columns says which two are meant, and may name the unit: "pixel wavelength(nm) flux".
    """
    coding = "utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    if b"\0" in content and coding != "utf-16":
        raise InputError("neither FITS nor text")
    rows: list[tuple[float, float]] = []
    titles: list[str] = []
    columns, unit = (0, 1), ""
    for number, line in enumerate(content.decode(coding, errors="replace").splitlines(), start=1):
        body = re.split(r"[#!%]", line, maxsplit=1)[0].strip()
        if not body or body.startswith(";"):
            titles.append(line)
            continue
        if not rows:
            columns, unit = _titled(titles)
        try:
            words = _words(body)
            rows.append((_number(words[columns[0]]), _number(words[columns[1]])))
        except InputError as error:
            raise InputError(f"line {number}: {error}") from None
        except (ValueError, IndexError):
            if rows:
                raise InputError(f"line {number}: two numbers expected, got {line.strip()[:40]!r}") from None
            titles.append(line)
            if number > 200:  # titles stand at the top
                break
    if not rows:
        raise InputError("neither FITS nor text with two columns, wavelength in Å and flux")
    wave, flux = np.array(rows).T
    return _Raw(wave, flux, unit=unit)


def _titled(titles: list[str]) -> tuple[tuple[int, int], str]:
    """Columns of wavelength and flux, and the wavelengths' unit ("" if unsaid), from the lines above the data."""
    columns, unit = (0, 1), ""
    for line in titles:
        words = [re.sub(r"[\[(].*", "", w).lower() for w in re.split(r"[\s,;|#!%]+", line) if re.match(r"[A-Za-z]", w)]
        wave = next((k for k, w in enumerate(words) if w in _WAVE), None)
        flux = next((k for k, w in enumerate(words) if w in _FLUX), None)
        if wave is not None:
            found = _UNIT_WORD.search(line)
            unit = "log10" if words[wave].startswith("log") else found[1] if found else unit
            if flux is not None:
                columns = wave, flux
    return columns, unit


def _words(body: str) -> list[str]:
    """The numbers of a line as written with decimal points: "4000,5 1,2" and "4000,5;1,2" hold decimal commas.

    InputError if a comma could be read in two ways, as in "4,000.5 1.2".
    """
    words = [w for w in (w.strip(",") for w in re.split(r"[\s;]+", body)) if w]
    if not any("," in w for w in words):
        return words
    if len(words) == 1:  # comma-separated values
        values = [w.strip() for w in body.split(",")]
        if len(values) >= 4 and all(re.fullmatch(r"-?\d+", v) for v in values):
            raise InputError(
                f"commas between and in numbers: {body[:40]!r}; write decimal points, or tabs between columns"
            )
        return values
    if all(_DECIMAL_COMMA.match(w) for w in words[:2]):
        return [w.replace(",", ".") for w in words]
    if all(re.match(r"[-+]?[\d,]", w) for w in words[:2]):
        raise InputError(f"a comma that is neither a decimal comma nor between columns: {body[:40]!r}")
    return words


def _number(word: str) -> float:
    return float(word.replace("D", "e").replace("d", "e"))  # Fortran's exponents


# --- FITS ----------------------------------------------------------------------------------------------------------
def _read_fits(content: bytes) -> _Raw:
    """Whatever spectrum a FITS file holds: SDSS or another table, spSpec, 1-D image, multispec."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old headers break the standard harmlessly
        warnings.filterwarnings("error", message=".*truncated.*")
        try:
            with fits.open(io.BytesIO(content)) as file:
                for hdu in file:
                    if isinstance(hdu, fits.BinTableHDU) and (found := _from_table(hdu, file)):
                        return found
                tables = [", ".join(hdu.columns.names) for hdu in file if isinstance(hdu, fits.BinTableHDU)]
                image = next((hdu for hdu in file if hdu.is_image and hdu.data is not None), None)
                if image is None and tables:
                    raise InputError(f"table without a column wave and a column flux; it has {tables[0][:60]}")
                if image is None:
                    raise InputError("FITS file with neither an array nor a table of wavelengths and fluxes")
                header, data = image.header, image.data
            if data.ndim == 2 and "COEFF0" in header:
                return _from_spspec(header, data)
            return _from_image(header, data)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # astropy raises nearly anything on a damaged file
            raise InputError(f"damaged FITS file: {' '.join(str(error).split())[:120]}") from None


def _from_table(hdu: fits.BinTableHDU, file: fits.HDUList) -> _Raw | None:
    """A table with wavelengths and fluxes, None if it has none.

    SDSS spec-PPPP-MMMMM-FFFF.fits has loglam in vacuum, ivar (0 = bad) and Z in HDU 2; others tell units by TUNIT.
    """
    names = {name.lower(): name for name in reversed(hdu.columns.names)}
    wave = next((names[n] for n in ("loglam", *_WAVE) if n in names), None)
    flux = next((names[n] for n in _FLUX if n in names), None)
    if wave is None or flux is None:
        return None
    good = np.ravel(hdu.data[names["ivar"]]) > 0 if "ivar" in names else None
    unit, flux_unit = (hdu.columns[n].unit or "" for n in (wave, flux))
    raw = _Raw(np.ravel(hdu.data[wave]), np.ravel(hdu.data[flux]), good, unit, flux_unit)
    if wave.lower().startswith("log"):
        raw.unit = "log10"
    primary = file[0].header
    if wave.lower() == "loglam" or primary.get("VACUUM") is True:
        raw.medium = "vacuum"
    if wave.lower() == "loglam":
        raw.fwhm = SDSS_FWHM
        for other in file[2:3]:
            row = {n.lower(): other.data[n][0] for n in other.columns.names} if getattr(other, "columns", None) else {}
            raw.redshift, raw.sptype = float(row.get("z", 0.0)), row.get("subclass")
    return raw


def _from_spspec(header: fits.Header, data: np.ndarray) -> _Raw:
    """SDSS spSpec-*.fit: row 0 flux, row 2 error (0 = bad); λ = 10^(COEFF0 + COEFF1·i), vacuum."""
    wave = header["COEFF0"] + header["COEFF1"] * np.arange(data.shape[1])
    good = data[2] > 0 if len(data) > 2 else None
    redshift = float(header.get("Z", 0.0))
    return _Raw(wave, data[0], good, "log10", medium="vacuum", redshift=redshift, fwhm=SDSS_FWHM)


def _from_image(header: fits.Header, data: np.ndarray) -> _Raw:
    """1-D image (n,) or (1, n), or the first band (k, 1, n) of IRAF's apall.

    λ = CRVAL1 + CDELT1·(i + 1 − CRPIX1); CD1_1 may replace CDELT1; log10 where DC-FLAG = 1 or CTYPE1 says so.
    """
    flux = np.squeeze(data[0] if data.ndim == 3 and data.shape[1] == 1 else data)
    if flux.ndim != 1:
        raise InputError(f"an array {data.shape} where one spectrum (n,) or (1, n) is expected; extract it first")
    fwhm = header.get("FWHM")
    raw = _Raw(
        None, flux, flux_unit=str(header.get("BUNIT", "")), unit=str(header.get("CUNIT1", "")).strip(),
        name=str(header.get("OBJECT", "")).strip(), sptype=str(header.get("SPECTYPE", "")).strip() or None,
        fwhm=float(fwhm) if isinstance(fwhm, int | float) and 0 < fwhm < 50 else None,
    )  # fmt: skip
    kind = str(header.get("CTYPE1", "")).strip().upper()
    pixel = np.arange(len(flux)) + 1.0
    if kind == "MULTISPE":
        raw.wave, raw.unit = _multispec(header, pixel)
        return raw
    step = header.get("CDELT1") or header.get("CD1_1")
    if "CRVAL1" not in header or not step:
        raise InputError("no wavelengths: CRVAL1 with CDELT1 or CD1_1 is not in the header")
    first = header["CRVAL1"]
    raw.wave = first + step * (pixel - header.get("CRPIX1", 1.0))
    if kind == "WAVE-LOG" and first > 10:  # as the standard has it: λ = λ₀·exp((λ' − λ₀)/λ₀) (Greisen et al. 2006)
        raw.wave, raw.medium = first * np.exp((raw.wave - first) / first), "vacuum"
    elif header.get("DC-FLAG") == 1 or "LOG" in kind:
        raw.unit = raw.unit if raw.unit.lower().startswith("ln") else "log10"
    elif kind == "WAVE" or header.get("VACUUM") is True:  # WAVE is vacuum by the standard, AWAV is air
        raw.medium = "vacuum"
    return raw


def _multispec(header: fits.Header, pixel: np.ndarray) -> tuple[np.ndarray, str]:
    """Wavelengths (n,) and unit of IRAF's multispec, linear (type 0) or log10 (type 1).

    WAT2_nnn: spec1 = "aperture beam type w1 dw n z ...": λ = (w1 + dw·(i − 1))/(1 + z).
    """
    cards = "".join(f"{header[f'WAT2_{k:03d}']!s:68}" for k in range(1, 1000) if f"WAT2_{k:03d}" in header)
    found = re.search(r'spec1\s*=\s*"\s*([^"]+)"', cards)
    words = found[1].split() if found else []
    if len(words) < 7 or words[2] not in ("0", "1"):
        raise InputError("IRAF multispec without a linear or log wavelength scale; run dispcor on it first")
    wave = (float(words[3]) + float(words[4]) * (pixel - 1)) / (1 + float(words[6]) if words[2] == "0" else 1)
    return wave, "log10" if words[2] == "1" else "Angstrom"
