"""From images in g, r, i to the network's pictures, as in the talk: composite, cut to the galaxy's size, resample.

The cut is a multiple of the de Vaucouleurs radius, so that every galaxy fills its field alike, whatever its distance.
"""

from __future__ import annotations

import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from examples.common import InputError, new_folder, write_csv
from examples.galaxy_bars.catalogue import Catalogue, write_labels
from examples.galaxy_bars.data import FITS, SIZE, Bytes, colour_picture, fits_bands

NAME = re.compile(r"(?P<objid>.+?)(?:[-_.](?P<band>[gri]))?\.(?:fits|fit)(?:\.gz|\.fz)?", re.IGNORECASE)
SDSS_SCALE = 0.396  # arcsec per pixel


def prepare(
    catalogue: Catalogue,
    images: Path,
    out: Path,
    radii: float = 4.0,
    size: int = SIZE,
    pixel_scale: float = SDSS_SCALE,
    overwrite: bool = False,
) -> tuple[int, int, list[str]]:
    """Write OBJID.png for each galaxy whose image is in `images`, prepared.csv, and labels.csv where labels are known.

    Returns the number of pictures, of those with a label, and a line for each galaxy that gave none.
    InputError if none did.
    """
    from PIL import Image

    found = find_images(images)
    radius = catalogue.numbers("radius") if "radius" in catalogue.columns else None
    if radius is None:
        raise InputError("prepare needs the column deVRad_r in the catalogue: the cut is a multiple of it")
    ra, dec = catalogue.numbers("ra"), catalogue.numbers("dec")
    rows, files, failures = [], {}, []
    with new_folder(out, "prepared.csv", overwrite) as part:
        for k, objid in enumerate(
            tqdm(catalogue.text("objid"), unit="galaxy", leave=False, disable=not sys.stderr.isatty())
        ):
            try:
                if objid not in found:
                    raise InputError(f"{objid}: no FITS image of this name in {images}")
                bands, headers = read_bands(found[objid], objid)
                picture = cut_out(
                    bands, headers, float(ra[k]), float(dec[k]), radii * radius[k], size, pixel_scale, objid
                )
            except InputError as error:
                failures.append(str(error))
                continue
            files[objid] = f"{objid}.png"
            Image.fromarray(picture).save(part / files[objid])
            rows.append([files[objid], objid, ra[k], dec[k], f"{radii * radius[k]:.3f}", size])
        if not rows:
            raise InputError(f"none of the {len(failures)} galaxies can be prepared; the first: {failures[0]}")
        write_csv(part / "prepared.csv", ["file", "objid", "ra", "dec", "field_arcsec", "pixels"], rows, overwrite=True)
        labelled = write_labels(part, catalogue, files)
    return len(rows), labelled, failures


def find_images(folder: Path) -> dict[str, dict[str, Path]]:
    """FITS files below a folder by objid and band: OBJID.fits (all bands, key ""), or OBJID-g.fits, -r, -i."""
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of FITS images")
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(FITS) and (match := NAME.fullmatch(path.name)):
            found.setdefault(match["objid"], {})[(match["band"] or "").lower()] = path
    return found


def read_bands(paths: dict[str, Path], objid: str) -> tuple[NDArray[np.float64], list[Any]]:
    """The bands g, r, i (3, h, w) of one galaxy, from one file or three, and the header of each file."""
    if "" in paths:
        bands, header = fits_bands(paths[""].read_bytes(), paths[""].name)
        return bands, [header]
    if missing := [band for band in "gri" if band not in paths]:
        raise InputError(f"{objid}: no image in {', '.join(missing)}")
    planes, headers = zip(*(fits_bands(paths[band].read_bytes(), paths[band].name) for band in "gri"), strict=True)
    if len({plane.shape for plane in planes}) > 1:
        raise InputError(f"{objid}: the images in g, r, i differ in size ({[plane.shape[1:] for plane in planes]})")
    return np.stack([plane[0] for plane in planes]), list(headers)


def cut_out(
    bands: NDArray[np.float64],
    headers: list[Any],
    ra: float,
    dec: float,
    field: float,
    size: int,
    pixel_scale: float,
    objid: str,
) -> Bytes:
    """Cut `field` arcsec around a place (degrees), composite, resample.   bands (3, h, w) -> (size, size, 3)

    The place and the scale come from the image's world coordinates; without them the galaxy is in the middle and
    `pixel_scale` holds. InputError if the cut leaves the image or the bands are not aligned.
    """
    from PIL import Image

    height, width = bands.shape[1:]
    places = [place for header in headers if (place := _locate(header, ra, dec)) is not None]
    x, y, scale = np.mean(places, axis=0) if places else ((width - 1) / 2, (height - 1) / 2, pixel_scale)
    if places and np.ptp(places, axis=0)[:2].max() > 0.5:
        raise InputError(f"{objid}: the images in g, r, i are not aligned: resample them to one grid first")
    if not (np.isfinite(field) and field > 0):
        raise InputError(f"{objid}: its deVRad_r is not a positive number")
    side = field / scale
    left, bottom = x + 0.5 - side / 2, y + 0.5 - side / 2  # in pixels from the corner
    box = np.array([left, left + side, bottom, bottom + side])
    inside = np.round(box, 6)
    if inside.min() < 0 or inside[1] > width or inside[3] > height:
        raise InputError(
            f"{objid}: a cut of {field:.1f} arcsec ({side:.0f} pixels) leaves the image: take a larger one"
        )
    if side < 16:
        raise InputError(f"{objid}: a cut of {field:.1f} arcsec has only {side:.0f} pixels, 16 at least")
    x0, y0 = int(inside[0]), int(inside[2])
    x1, y1 = int(np.ceil(inside[1])), int(np.ceil(inside[3]))
    picture = Image.fromarray(colour_picture(bands[:, y0:y1, x0:x1], objid))  # its first row is the image's last
    corners = (box[0] - x0, y1 - box[3], box[1] - x0, y1 - box[2])
    frame = np.clip(corners, 0, [picture.width, picture.height] * 2)
    return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=tuple(frame)))


def _locate(header: Any, ra: float, dec: float) -> tuple[float, float, float] | None:
    """Pixel x, y (from 0) of a place and arcsec per pixel by a header's world coordinates; None if it has none."""
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old keywords, mended on reading
        try:
            wcs = WCS(header).celestial
        except Exception:  # wcslib's errors have no common base
            return None
        if not wcs.has_celestial:
            return None
        x, y = wcs.world_to_pixel_values(ra, dec)
        return float(x), float(y), float(np.mean(proj_plane_pixel_scales(wcs)) * 3600)
