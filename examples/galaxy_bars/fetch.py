"""Cut-outs of a catalogue's galaxies from the image service of the SDSS, politely.

One request at a time, at most `rate` a second; what fails for a moment is tried again, later each time; what is there
already, by its checksum, is not asked for again. The service's JPEGs are Lupton composites of g, r, i.
"""

from __future__ import annotations

import csv
import hashlib
import http.client
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from examples.common import InputError
from examples.galaxy_bars.catalogue import Catalogue, write_labels
from examples.galaxy_bars.data import FIELD, SIZE, read_image
from minidl.checkpoint import atomic_write

SERVICE = "https://skyserver.sdss.org/dr18/SkyServerWS/ImgCutout/getjpeg"
MANIFEST = "fetched.csv"
HEADER = ["file", "objid", "sha256", "ra", "dec", "arcsec_per_pixel", "pixels", "url"]
PASSING = {408, 425, 429, 500, 502, 503, 504}  # HTTP: try again later
LARGEST = 20_000_000  # bytes; a cut-out has some thousand
GIVE_UP = 10  # galaxies in a row: the service is down, or refuses us


@dataclass
class Service:
    """Where cut-outs come from and how gently: requests a second, tries, seconds until a request is given up."""

    url: str = SERVICE
    rate: float = 2.0
    tries: int = 5
    timeout: float = 30.0
    sleep: Callable[[float], None] = time.sleep
    _next: float = field(default=0.0, init=False)  # when the next request may go out

    def get(self, url: str) -> bytes:
        """One answer of the service; InputError after the last try, or at once if trying again cannot help."""
        for attempt in range(1, self.tries + 1):
            self.sleep(max(0.0, self._next - time.monotonic()))
            self._next = time.monotonic() + 1 / self.rate
            wait = 2.0**attempt / 2  # 1, 2, 4, 8 ... seconds
            try:
                request = urllib.request.Request(url, headers={"User-Agent": "minidl-galaxy-bars/1.0"})
                with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                    content = answer.read(LARGEST)
                    length = answer.headers.get("Content-Length")
                if length is None or len(content) == int(length):
                    return bytes(content)
                problem = f"the answer broke off after {len(content)} of {length} bytes"
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {error.reason}"
                if error.code not in PASSING:
                    raise InputError(problem) from error
                told = error.headers.get("Retry-After", "")
                wait = min(max(wait, float(told)), 600) if told.isdigit() else wait
            except (OSError, http.client.HTTPException) as error:  # URLError, timeouts, connections that break
                problem = str(getattr(error, "reason", error)) or type(error).__name__
            if attempt < self.tries:
                self.sleep(wait)
        raise InputError(f"{problem}, {self.tries} times")


@dataclass
class Fetched:
    """How a run ended: files at hand now, those of them fetched in this run, and the failures."""

    files: dict[str, str]
    new: int
    failures: list[str]
    labelled: int


def fetch(
    catalogue: Catalogue,
    out: Path,
    service: Service,
    radii: float | None = None,
    size: int = SIZE,
) -> Fetched:
    """Fetch a cut-out of each galaxy into the folder `out`: OBJID.jpeg, fetched.csv, labels.csv where labels are known.

    The field is `radii` de Vaucouleurs radii across, else 19.2 arcsec. Run again, it goes on where it was interrupted,
    and fetches anew what is missing, changed (by its SHA-256) or asked for in another size. InputError if many galaxies
    in a row fail, for then it is the service.
    """
    wanted = list(_wanted(catalogue, service.url, radii, size))
    out.mkdir(parents=True, exist_ok=True)
    kept, begins = _read_manifest(out), not (out / MANIFEST).exists()
    state = Fetched({}, 0, [], 0)
    in_a_row = 0
    with open(out / MANIFEST, "a", newline="", encoding="utf-8") as file:
        manifest = csv.writer(file)
        if begins:
            manifest.writerow(HEADER)
        for row in tqdm(wanted, unit="galaxy", leave=False, disable=not sys.stderr.isatty()):
            name, objid, url = row["file"], row["objid"], row["url"]
            if (old := kept.get(name)) and old["url"] == url and _sha256(out / name) == old["sha256"]:
                state.files[objid] = name
                continue
            try:
                content = service.get(url)
                read_image(content, name)  # a picture, whole, not an error tile
            except InputError as error:
                state.failures.append(f"{objid}: {error}")
                tqdm.write(f"error: {state.failures[-1]}", file=sys.stderr)
                in_a_row += 1
                if in_a_row == GIVE_UP:
                    raise InputError(
                        f"{GIVE_UP} galaxies in a row failed, the last with {error}: stopped; {len(state.files)} are "
                        f"in {out}, run it again later to go on"
                    ) from error
                continue
            in_a_row = 0
            with atomic_write(out / name) as part:
                part.write_bytes(content)
            manifest.writerow([*({**row, "sha256": hashlib.sha256(content).hexdigest()}[key] for key in HEADER)])
            file.flush()
            state.files[objid] = name
            state.new += 1
    state.labelled = write_labels(out, catalogue, state.files)
    return state


def _wanted(catalogue: Catalogue, service: str, radii: float | None, size: int) -> Iterator[dict[str, str]]:
    """File, objid, place, scale and address of each cut-out; InputError for a galaxy without place or radius."""
    if radii is not None and "radius" not in catalogue.columns:
        raise InputError("--radii needs the column deVRad_r in the catalogue")
    ra, dec = catalogue.numbers("ra"), catalogue.numbers("dec")
    fields = np.full(len(ra), FIELD) if radii is None else radii * catalogue.numbers("radius")
    for k, objid in enumerate(catalogue.text("objid")):
        if not (0 <= ra[k] <= 360 and -90 <= dec[k] <= 90 and 0 < fields[k] < 3600):
            raise InputError(f"{objid}: ra {ra[k]:g}, dec {dec[k]:g}, field {fields[k]:g} arcsec: no place on the sky")
        place = {"ra": f"{ra[k]:.6f}", "dec": f"{dec[k]:.6f}", "scale": f"{fields[k] / size:.5f}"}
        query = urllib.parse.urlencode({**place, "width": size, "height": size})
        yield {
            "file": f"{objid}.jpeg",
            "objid": objid,
            "ra": place["ra"],
            "dec": place["dec"],
            "arcsec_per_pixel": place["scale"],
            "pixels": str(size),
            "url": f"{service}?{query}",
        }


def _read_manifest(folder: Path) -> dict[str, dict[str, str]]:
    """What was fetched before, by file, the last entry of each; a line cut off by a crash counts for nothing."""
    path = folder / MANIFEST
    if not path.exists():
        if any(folder.iterdir()):
            raise InputError(
                f"{folder} is not empty and was not made by fetch (no {MANIFEST} in it): give another --out"
            )
        return {}
    text = path.read_text(encoding="utf-8")
    if not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        with atomic_write(path) as part:
            part.write_text(text, encoding="utf-8", newline="")
    return {row["file"]: row for row in csv.DictReader(text.splitlines()) if row.get("url")}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
