"""The MILES and STELIB libraries as any user gets them: through pip, out of the package sdss-mangadap (BSD-3).

The wheel (121 MB) is downloaded once, checked and kept; nothing of it is installed or run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..common import new_folder, pip_archive, wheel_members
from .data import LIBRARY_FWHM, write_labels

REQUIREMENT = "sdss-mangadap==4.5.0"
SHA256 = "b8478bb24c32fe736fa6a2881805458719281862313838f8b032f3c10527ff34"
ACKNOWLEDGEMENT = (
    "Please acknowledge the libraries in what you publish: MILES (Sanchez-Blazquez et al. 2006, MNRAS 371, 703; "
    "Falcon-Barroso et al. 2011, A&A 532, A95) and STELIB (Le Borgne et al. 2003, A&A 402, 433)."
)
_MEMBER = re.compile(
    r"mangadap/data/spectral_templates/"
    r"(?:miles/(?P<miles>MILES_res2\.50_star_m(?P<number>\d{4})V\.fits|paramsMILES_v9\.1\.txt)"
    r"|stelib/(?P<stelib>STELIB_v3\.2_(?P<star>\w+)\.fits))"
)
_PARAMETERS = re.compile(r"(?P<name>.{23})(?P<number>\d{4}) .{6}(?P<type>.{15})")  # fixed columns of paramsMILES


def fetch(out: Path, *, overwrite: bool = False) -> None:
    """Write both libraries into the folder `out`: miles/*.fits, stelib/*.fits, labels.csv, about.json.

    InputError if the package cannot be had (no network) or is not the one whose checksum is known.
    """
    with new_folder(out, "about.json", overwrite) as part:
        archive = pip_archive(REQUIREMENT, SHA256)
        miles, rows, table = [], [], ""
        for member, content in wheel_members(archive, lambda name: _MEMBER.fullmatch(name) is not None):
            match = _MEMBER.fullmatch(member)
            assert match is not None
            if match["miles"] and not match["number"]:
                table = content.decode("latin-1")
                continue
            file = f"miles/{match['miles']}" if match["miles"] else f"stelib/{match['stelib']}"
            (part / file).parent.mkdir(exist_ok=True)
            (part / file).write_bytes(content)
            if match["miles"]:
                miles.append((int(match["number"]), file))
            else:
                star = re.sub(r"(lp|ss)$", "", match["star"])  # two spectra of one star
                rows.append([file, "stelib", star, _header_type(content), LIBRARY_FWHM["stelib"]])
        found = {int(m["number"]): m for line in table.splitlines() if (m := _PARAMETERS.match(line))}
        for number, file in miles:
            name, kind = (found[number][k].strip() for k in ("name", "type")) if number in found else (file, "")
            rows.append([file, "miles", name, kind, LIBRARY_FWHM["miles"]])
        write_labels(part, sorted(rows))
        about = {"kind": "real", "what": "MILES v9.1 and STELIB v3.2", "from": REQUIREMENT, "note": ACKNOWLEDGEMENT}
        (part / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    print(f"{len(miles)} spectra of MILES and {len(rows) - len(miles)} of STELIB in {out}\n{ACKNOWLEDGEMENT}")


def _header_type(content: bytes) -> str:
    """SPECTYPE of a FITS file given as bytes; the card is read as text, for these old headers break the standard."""
    match = re.search(rb"SPECTYPE= '([^']*)'", content[: 80 * 200])
    return match[1].decode("latin-1").strip() if match else ""
