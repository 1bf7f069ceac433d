"""One file in, one `Spectrum` out: 1-D FITS, SDSS spec and spSpec, FITS tables, two-column text.

Every reader gives wavelengths in Å, in air, at rest, ascending, and native arrays; whatever cannot be used becomes an
`InputError` of one line that names the file.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common import InputError
from .preprocess import Spectrum

if TYPE_CHECKING:
    from astropy.io import fits

SDSS_FWHM = 2.5  # Å, about λ/2000 in the middle of the range
_UNITS = {"angstrom": 1.0, "angstroms": 1.0, "a": 1.0, "nm": 10.0, "um": 1e4, "micron": 1e4, "m": 1e10}
_FILL_RUN = 8  # a detector does not repeat a value; so many equal pixels in a row fill a gap


def read(path: str | Path) -> Spectrum:
    """Read a spectrum of any known format, told apart by content; InputError says what is wrong with it."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(2880)
        if not head:
            raise InputError("the file is empty")
        is_fits = head.startswith(b"SIMPLE  =") or head.startswith(b"\x1f\x8b")  # gzipped FITS opens as FITS
        spectrum = _checked(*(_read_fits(path) if is_fits else _read_text(path)))
    except (InputError, OSError) as error:
        text = str(error) if isinstance(error, InputError) else (error.strerror or str(error))
        raise InputError(f"{path}: {text}") from None
    spectrum.name = spectrum.name or path.name
    return spectrum


def vacuum_to_air(wave: np.ndarray) -> np.ndarray:
    """Wavelengths in air from those in vacuum, Å (Ciddor 1996 as the SDSS prints it); within .01 Å in the optical."""
    inverse = (1e4 / wave) ** 2
    return wave / (1 + 0.05792105 / (238.0185 - inverse) + 0.00167917 / (57.362 - inverse))


def _checked(wave: Any, flux: Any, good: Any, extra: dict[str, Any]) -> Spectrum:
    """Sort out order, NaN and fill values: three arrays (n,) and the fields of a Spectrum -> Spectrum."""
    try:
        if np.iscomplexobj(flux):
            raise TypeError
        wave = np.ascontiguousarray(wave, dtype=np.float64)  # FITS is big-endian: native from here on
        flux = np.ascontiguousarray(flux, dtype=np.float64)
    except (ValueError, TypeError):
        raise InputError("wavelengths and fluxes are no plain numbers") from None
    if not len(wave) == len(flux) == len(good):
        raise InputError(f"{len(wave)} wavelengths, {len(flux)} fluxes, {len(good)} weights: as many of each expected")
    if len(wave) < 20:
        raise InputError(f"only {len(wave)} pixels: not a spectrum")
    if not np.isfinite(wave).all() or wave.min() <= 0:
        raise InputError("wavelengths must be positive numbers")
    steps = np.diff(wave)
    if (steps < 0).all():
        wave, flux, good, steps = wave[::-1], flux[::-1], good[::-1], -steps[::-1]
    if not (steps > 0).all():
        at = int(np.argmax(steps <= 0))
        raise InputError(f"wavelengths do not ascend: {wave[at]:g} is followed by {wave[at + 1]:g} at pixel {at + 2}")
    good = np.asarray(good, dtype=bool) & np.isfinite(flux) & (flux != 0) & ~_filled(flux)
    if not good.any():
        raise InputError("no pixel holds a measured flux (all are NaN, zero, equal or masked)")
    return Spectrum(wave, np.where(good, flux, 0.0), good, **extra)


def _filled(flux: np.ndarray) -> np.ndarray:
    """Pixels (n,) in a run of at least eight equal values, such as the 0.0001 in the gaps of Indo-US spectra."""
    starts = np.flatnonzero(np.concatenate([[True], flux[1:] != flux[:-1]]))
    lengths = np.diff(np.append(starts, len(flux)))
    return np.repeat(lengths >= _FILL_RUN, lengths)


def _read_text(path: Path) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Two columns, wavelength in Å and flux; more columns, comments (# ; ! %), a title line and commas are allowed."""
    raw = path.read_bytes()
    if b"\0" in raw:
        raise InputError("neither FITS nor text")
    rows: list[tuple[float, float]] = []
    for number, line in enumerate(raw.decode("utf-8-sig", errors="replace").splitlines(), start=1):
        words = re.split(r"[#;!%]", line, maxsplit=1)[0].replace(",", " ").split()
        if not words:
            continue
        try:
            rows.append((_number(words[0]), _number(words[1])))
        except (ValueError, IndexError):
            if rows:
                raise InputError(f"line {number}: two numbers expected, got {line.strip()[:40]!r}") from None
            if number > 100:  # titles stand at the top
                break
    if not rows:
        raise InputError("neither FITS nor text with two columns, wavelength in Å and flux")
    wave, flux = np.array(rows).T
    return wave, flux, np.ones(len(wave), dtype=bool), {}


def _number(word: str) -> float:
    return float(word.replace("D", "e").replace("d", "e"))  # Fortran's exponents


def _read_fits(path: Path) -> tuple[Any, Any, Any, dict[str, Any]]:
    """Whatever spectrum a FITS file holds: SDSS or another table, spSpec, 1-D image."""
    from astropy.io import fits

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # old headers break the standard harmlessly
        warnings.filterwarnings("error", message=".*truncated.*")
        try:
            with fits.open(_unpacked(path), memmap=False) as file:
                for hdu in file:
                    if isinstance(hdu, fits.BinTableHDU) and (columns := _columns(hdu)):
                        return _from_table(columns, file)
                image = next((hdu for hdu in file if hdu.is_image and hdu.data is not None), None)
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


def _unpacked(path: Path) -> Path | io.BytesIO:
    """The file itself, or the bytes of a gzipped one, whose checksum astropy would not look at."""
    with open(path, "rb") as file:
        if file.read(2) != b"\x1f\x8b":
            return path
    with gzip.open(path) as file:
        return io.BytesIO(file.read())


def _columns(hdu: fits.BinTableHDU) -> dict[str, np.ndarray]:
    """Columns of a table by the names used here (wave or loglam, flux, ivar), whatever their case; {} if not there."""
    known = {"loglam": "loglam", "flux": "flux", "flam": "flux", "ivar": "ivar"}
    known |= dict.fromkeys(("wave", "wavelength", "lambda", "lam"), "wave")
    found = {known[n.lower()]: np.ravel(hdu.data[n]) for n in hdu.columns.names if n.lower() in known}
    return found if "flux" in found and ("loglam" in found or "wave" in found) else {}


def _from_table(columns: dict[str, np.ndarray], file: fits.HDUList) -> tuple[Any, Any, Any, dict[str, Any]]:
    """SDSS spec-PPPP-MMMMM-FFFF.fits (loglam, vacuum, ivar 0 = bad, Z in HDU 2), or a plain table in Å and air."""
    flux = columns["flux"]
    good = columns["ivar"] > 0 if "ivar" in columns else np.ones(len(flux), dtype=bool)
    if "loglam" not in columns:
        return columns["wave"], flux, good, {}
    shift, sptype = 0.0, None
    for hdu in file[2:3]:
        row = {n.lower(): hdu.data[n][0] for n in hdu.columns.names} if getattr(hdu, "columns", None) else {}
        shift, sptype = float(row.get("z", 0.0)), row.get("subclass")
    return _rest(10.0 ** columns["loglam"].astype(np.float64), shift), flux, good, {"fwhm": SDSS_FWHM, "sptype": sptype}


def _from_spspec(header: fits.Header, data: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
    """SDSS spSpec-*.fit: row 0 flux, row 2 error (0 = bad); λ = 10^(COEFF0 + COEFF1·i), vacuum."""
    wave = 10.0 ** (header["COEFF0"] + header["COEFF1"] * np.arange(data.shape[1]))
    good = data[2] > 0 if len(data) > 2 else np.ones(data.shape[1], dtype=bool)
    return _rest(wave, float(header.get("Z", 0.0))), data[0], good, {"fwhm": SDSS_FWHM}


def _rest(wave: np.ndarray, redshift: float) -> np.ndarray:
    """Vacuum wavelengths as observed -> air wavelengths at rest."""
    if not -0.1 < redshift < 10:
        raise InputError(f"the header's redshift {redshift:g} is absurd")
    return vacuum_to_air(wave / (1 + redshift))


def _from_image(header: fits.Header, data: np.ndarray) -> tuple[Any, Any, Any, dict[str, Any]]:
    """1-D image (n,) or (1, n): λ = CRVAL1 + CDELT1·(i + 1 − CRPIX1); CD1_1 may replace CDELT1; log10 where it says."""
    flux = np.squeeze(data)
    if flux.ndim != 1:
        raise InputError(f"an array {data.shape} where one spectrum (n,) or (1, n) is expected")
    step = header.get("CDELT1") or header.get("CD1_1")
    if "CRVAL1" not in header or not step:
        raise InputError("no wavelengths: CRVAL1 with CDELT1 or CD1_1 is not in the header")
    wave = header["CRVAL1"] + step * (np.arange(len(flux)) + 1.0 - header.get("CRPIX1", 1.0))
    if header.get("DC-FLAG") == 1 or str(header.get("CTYPE1", "")).strip().upper() == "WAVE-LOG":
        if np.abs(wave).max() > 10:
            raise InputError(f"log10 wavelengths up to {wave.max():g} are absurd")
        wave = 10.0**wave
    unit = str(header.get("CUNIT1", "")).strip().lower() or "angstrom"
    if unit not in _UNITS:
        raise InputError(f"unknown unit of wavelength CUNIT1 = {unit!r}; Angstrom, nm, um or m are known")
    fwhm = header.get("FWHM")
    extra = {
        "name": str(header.get("OBJECT", "")).strip(),
        "sptype": str(header.get("SPECTYPE", "")).strip() or None,
        "fwhm": float(fwhm) if isinstance(fwhm, int | float) and 0 < fwhm < 50 else None,
    }
    return wave * _UNITS[unit], flux, np.ones(len(flux), dtype=bool), extra
