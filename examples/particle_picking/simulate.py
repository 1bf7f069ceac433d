"""Simulated micrographs of a molecule like beta-galactosidase: density, projection, microscope, ice, counts.

Read it top to bottom to learn why particles are so hard to see. Lengths are in Å, images are (row y, column x). The
molecule is a sum of Gaussian blobs, so its projection in any direction is exact and needs no interpolation.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import fft, ndimage

from examples.common import InputError, new_folder
from examples.particle_picking import formats

DIAMETER = 190.0  # Å: the circle a particle is marked with, as the experts drew it on EMPIAR-10017 (108 px of 1.77 Å)
SIZE = (180.0, 130.0, 95.0)  # Å: beta-galactosidase along its three twofold axes
VOLUME = 465e3 * 1.21  # Å³: 465 kDa at 1.21 Å³/Da
PACKING = 0.5  # share of a molecule's outline that is protein: beta-galactosidase in its ellipsoid 0.48
CONTRAST = 2.5  # V: mean inner potential of protein less that of vitreous ice, about
SIGMA_300KV = 6.53e-4  # rad/(V Å): phase shift per projected potential of 300 kV electrons
FREE_PATH = {"ice": 3000.0, "carbon": 1600.0}  # Å: inelastic mean free paths at 300 kV, about


@dataclass(frozen=True)
class Microscope:
    """What forms the image: lengths in Å except `cs` in mm; `dose` in electrons per Å²."""

    defocus: float = 22000.0
    cs: float = 2.7
    kilovolts: float = 300.0
    amplitude_contrast: float = 0.10
    b_factor: float = 300.0  # Å²: envelope of motion, drift and detector
    dose: float = 20.0
    apix: float = 3.54

    @property
    def wavelength(self) -> float:
        """λ = 12.2643 / √(V + 0.97845e-6 V²) Å (relativistic de Broglie): 0.0197 Å at 300 kV."""
        volts = self.kilovolts * 1e3
        return 12.2643 / np.sqrt(volts + 0.97845e-6 * volts**2)

    def ctf(self, k: np.ndarray) -> np.ndarray:
        """Contrast transfer sin(χ + asin A) at frequency k (1/Å): χ = π λ Δf k² − ½ π Cs λ³ k⁴, underfocus positive."""
        chi = np.pi * self.wavelength * self.defocus * k**2 - 0.5 * np.pi * self.cs * 1e7 * self.wavelength**3 * k**4
        return np.sin(chi + np.arcsin(self.amplitude_contrast))

    def envelope(self, k: np.ndarray) -> np.ndarray:
        """exp(−B k² / 4)."""
        return np.exp(-self.b_factor * k**2 / 4)


@dataclass(frozen=True)
class Molecule:
    """Gaussian blobs: centres (n, 3) in Å, mass centre at the origin; `width` σ in Å; `weight` ∫V of each in V Å³;
    `diameter` in Å of the circle a particle is marked with.
    """

    centres: np.ndarray
    width: float
    weight: float
    diameter: float = DIAMETER

    def project(self, rotation: np.ndarray, shift: np.ndarray, pixels: int, apix: float) -> np.ndarray:
        """Projected potential (pixels, pixels) in V Å along z of the molecule turned by `rotation` (3, 3).

        `shift` (x, y) in px moves the mass centre from pixel (pixels // 2, pixels // 2).
        Σ_k w/(2πσ²) exp(−(x−x_k)²/2σ²) exp(−(y−y_k)²/2σ²): one small matrix product.
        """
        xy = (self.centres @ rotation.T)[:, :2] / apix + shift + pixels // 2
        sigma = self.width / apix
        gx, gy = (np.exp(-0.5 * ((np.arange(pixels) - xy[:, c : c + 1]) / sigma) ** 2) for c in (0, 1))
        return self.weight / (2 * np.pi * self.width**2) * (gy.T @ gx)


def molecule(blobs: int = 36, width: float = 9.0, seed: int = 465) -> Molecule:
    """Four equal subunits of `blobs` blobs, related by three twofold axes (point group D2), filling 180 x 130 x 95 Å.

    One subunit fills a quarter of an ellipsoid, its blobs spread by farthest-point sampling; the symmetry makes the
    other three.
    """
    rng = np.random.default_rng(seed)
    axes = np.array(SIZE) / 2 - 1.5 * width  # a blob reaches about 1.5 σ beyond its centre
    cloud = rng.uniform((0.12, 0.12, -1), (1, 1, 1), (4000, 3))  # 0.12: clefts between subunits
    cloud = cloud[(cloud**2).sum(1) <= 1] * axes
    chosen = [int(np.argmax(cloud[:, 0]))]
    distance = np.full(len(cloud), np.inf)
    while len(chosen) < blobs:
        distance = np.minimum(distance, ((cloud - cloud[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(np.argmax(distance)))
    subunit = cloud[chosen]
    twofold = np.array([(1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)])
    centres = (subunit[None] * twofold[:, None]).reshape(-1, 3)
    return Molecule(centres, width, CONTRAST * VOLUME / len(centres))


def _filled(points: np.ndarray, volume: float, blobs: int, rng: np.random.Generator) -> Molecule:
    """`blobs` blobs on a choice of `points` (n, 3) that fill an outline of `volume` Å³, half of it protein.

    The width makes neighbouring blobs merge; the diameter holds 95 of 100 blobs, and 1.5 widths beyond them.
    """
    centres = points[rng.choice(len(points), min(blobs, len(points)), replace=False)]
    centres = centres - centres.mean(0)
    width = 0.55 * (volume / len(centres)) ** (1 / 3)
    reach = float(np.quantile(np.linalg.norm(centres, axis=1), 0.95)) + 1.5 * width
    return Molecule(centres, width, CONTRAST * PACKING * volume / len(centres), 2 * reach)


def _shell(rng: np.random.Generator) -> Molecule:
    """A hollow ball such as apoferritin: 122 Å outside, 80 Å inside."""
    cloud = rng.uniform(-61, 61, (20000, 3))
    radius = np.linalg.norm(cloud, axis=1)
    return _filled(cloud[(radius < 61) & (radius > 40)], 4 / 3 * np.pi * (61**3 - 40**3), 140, rng)


def _barrel(rng: np.random.Generator) -> Molecule:
    """Four stacked rings of seven, such as the 20S proteasome: 110 Å wide, 150 Å long, open along the axis."""
    angle = np.repeat(2 * np.pi * np.arange(7) / 7, 4)
    height = np.tile([-56.0, -19, 19, 56], 7)
    unit = np.stack([38 * np.cos(angle), 38 * np.sin(angle), height], 1)
    cloud = (unit[:, None] + rng.normal(0, 7, (28, 6, 3))).reshape(-1, 3)
    return _filled(cloud, np.pi * (55**2 - 20**2) * 150, len(cloud), rng)


def _antibody(rng: np.random.Generator) -> Molecule:
    """Three lobes in a Y, such as an antibody: about 150 Å across and mostly empty."""
    angle = np.radians([90, 215, 325])
    lobes = 48 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    cloud = (lobes[:, None] + rng.normal(0, 1, (3, 40, 3)) * (13, 13, 10)).reshape(-1, 3)
    return _filled(cloud, 3 * 4 / 3 * np.pi * 30 * 27 * 22, len(cloud), rng)


def _two_domains(rng: np.random.Generator) -> Molecule:
    """A large and a small lump side by side, such as a ribosome: 250 Å across."""
    cloud = rng.uniform(-140, 140, (40000, 3))
    large = np.linalg.norm((cloud - (0, 0, -35)) / (110, 95, 75), axis=1) < 1
    small = np.linalg.norm((cloud - (0, 20, 65)) / (95, 60, 45), axis=1) < 1
    return _filled(cloud[large | small], 280**3 * (large | small).mean(), 300, rng)


SHAPES = {
    "betagal": lambda rng: molecule(),
    "shell": _shell,
    "barrel": _barrel,
    "antibody": _antibody,
    "ribosome": _two_domains,
}
"""Molecules of fixed shape by name. `random_molecule` draws none of them, so that they can test what learnt from it."""


def random_molecule(rng: np.random.Generator) -> Molecule:
    """A lump that no cell has made: an ellipsoid of 80 to 300 Å, hollow or not, with bites taken out, then repeated
    by a symmetry (none, 2 to 6 copies about an axis, or D2).
    """
    size = np.exp(rng.uniform(np.log(80), np.log(300)))
    axes = size / 2 * np.array([1, rng.uniform(0.45, 1), rng.uniform(0.35, 1)])
    cloud = rng.uniform(-1, 1, (6000, 3))
    radius = np.linalg.norm(cloud, axis=1)
    keep = radius <= 1
    if rng.random() < 0.35:  # hollow, or open along z
        keep &= (radius if rng.random() < 0.5 else np.hypot(cloud[:, 0], cloud[:, 1])) > rng.uniform(0.2, 0.65)
    for _ in range(int(rng.integers(4))):
        keep &= np.linalg.norm(cloud - rng.uniform(-1, 1, 3), axis=1) > rng.uniform(0.2, 0.6)
    share = keep.mean()
    cloud = cloud[keep] * axes
    copies = int(rng.choice([1, 1, 2, 3, 4, 6]))
    angle = 2 * np.pi * np.arange(copies) / copies
    turns = [np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]]) for a in angle]
    if rng.random() < 0.3:
        turns += [turn @ np.diag([1.0, -1, -1]) for turn in turns]
    lump = cloud[rng.choice(len(cloud), max(6, 120 // len(turns)))]
    lump = lump[: max(6, len(lump))] + rng.uniform(0, 0.3) * axes[0] * (len(turns) > 1) * np.array([1.0, 0, 0])
    points = np.concatenate([lump @ turn.T for turn in turns])
    return _filled(points, float(8 * axes.prod() * share), len(points), rng)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix (3, 3), uniform over all orientations: a unit quaternion of four normal numbers."""
    w, x, y, z = (q := rng.normal(size=4)) / np.linalg.norm(q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _smooth_field(rng: np.random.Generator, shape: tuple[int, int], waves: float) -> np.ndarray:
    """A smooth random surface (H, W) of standard deviation 1 with about `waves` waves across."""
    field = ndimage.gaussian_filter(rng.normal(size=(64, 64)), 32 / waves / np.pi, mode="reflect")
    field = ndimage.zoom(field, [n / 64 for n in shape], order=1, grid_mode=True, mode="nearest")
    return (field - field.mean()) / field.std()


def _ice_crystal(rng: np.random.Generator, yy: np.ndarray, xx: np.ndarray) -> np.ndarray:
    """Thickness (H, W) in Å of one crystal of contaminating ice: a dome on a lobed outline."""
    y0, x0 = rng.uniform(yy[0, 0], yy[-1, 0]), rng.uniform(xx[0, 0], xx[0, -1])
    radius, height = rng.uniform(90, 260), rng.uniform(250, 700)
    angle = np.arctan2(yy - y0, xx - x0)
    outline = radius * (1 + sum(rng.normal(0, 0.05) * np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (2, 3, 5)))
    return height * np.sqrt(np.clip(1 - ((yy - y0) ** 2 + (xx - x0) ** 2) / outline**2, 0, None))


@dataclass
class Micrograph:
    """One simulated micrograph: electrons per pixel (H, W), true centres (n, 2) in px, class mask (H, W) uint8."""

    counts: np.ndarray
    xy: np.ndarray
    mask: np.ndarray
    microscope: Microscope
    phase: np.ndarray  # of the particles alone, rad, before the microscope


def micrograph(
    rng: np.random.Generator,
    *,
    size: int = 1024,
    apix: float = 3.54,
    particles: int = 150,
    carbon: bool = False,
    thing: Molecule | None = None,
    scope: Microscope | None = None,
    spacing: float = 0.6,
    dose: float = 20.0,
) -> Micrograph:
    """Simulate one field of `size` x `size` px: particles in ice, contaminated, through the microscope, counted.

    `thing` is the molecule (default beta-galactosidase), `scope` the microscope (default 1.4 to 3 µm out of focus,
    `dose` in electrons per Å²).

    I = dose·apix²·T·(1 − 2 F⁻¹[CTF·E·F φ]), counts ~ Poisson(I): φ the phase of protein, granular ice and carbon, T =
    exp(−Σ thickness/free path) what inelastic scattering leaves. `particles` is the number tried; none lies on carbon,
    in a crystal, or nearer than `spacing` diameters to another. Truth counts those at least half a diameter inside the
    frame.
    """
    thing = thing or molecule()
    scope = scope or Microscope(defocus=rng.uniform(14000, 30000), dose=dose, apix=apix)
    margin = int(
        np.ceil(max(150, 0.75 * thing.diameter) / apix)
    )  # the object goes on beyond the frame, so its edges look like its middle
    full = fft.next_fast_len(size + 2 * margin, real=True)
    yy, xx = (np.arange(full) - margin)[:, None] * apix, (np.arange(full) - margin)[None] * apix  # Å in the frame
    extent = size * apix

    ice = 450 * np.exp(rng.uniform(0.1, 0.35) * _smooth_field(rng, (full, full), 1.5))
    film = np.zeros((full, full))
    if carbon:  # the frame sees the rim of a round hole in the carbon film
        hole, angle = 6000.0, rng.uniform(0, 2 * np.pi)
        reach = hole - rng.uniform(0.10, 0.35) * extent
        y0, x0 = extent / 2 + reach * np.sin(angle), extent / 2 + reach * np.cos(angle)
        film = 220 / (1 + np.exp(np.clip((hole - np.hypot(yy - y0, xx - x0)) / 12, -50, 50)))
    crystal = sum(
        (_ice_crystal(rng, yy, xx) for _ in range(rng.poisson(2.5 * (extent / 3600) ** 2))), np.zeros((full, full))
    )

    mask = np.zeros((full, full), np.uint8)
    mask[crystal > 0] = 2
    mask[film > 110] = 3
    clear = ndimage.distance_transform_edt(mask == 0) * apix
    protein = np.zeros((full, full))
    half = int(np.ceil(thing.diameter / 2 / apix)) + 2
    kept: list[np.ndarray] = []
    low, high = -margin + half + 1, full - margin - half - 2
    for xy in rng.uniform(low, high, (round(particles * ((high - low) / size) ** 2), 2)):
        column, row = (int(c) for c in np.round(xy) + margin)
        near = any(np.hypot(*(xy - k)) * apix < spacing * thing.diameter for k in kept)
        if near or clear[row, column] < 0.4 * thing.diameter:
            continue
        patch = thing.project(random_rotation(rng), xy + margin - (column, row), 2 * half + 1, apix)
        protein[row - half : row + half + 1, column - half : column + half + 1] += patch
        kept.append(xy)
    mask[(protein > 0.1 * CONTRAST * thing.diameter) & (mask == 0)] = 1

    phase = SIGMA_300KV * protein
    grain = rng.normal(size=(full, full)) * (0.10 * np.sqrt(ice / 450) + 0.20 * film / 220) / apix * 3.54
    k = np.hypot(fft.fftfreq(full, apix)[:, None], fft.rfftfreq(full, apix)[None])
    wave = fft.irfft2(
        fft.rfft2(phase + grain + SIGMA_300KV * 1.5 * crystal) * scope.ctf(k) * scope.envelope(k), (full, full)
    )
    left = np.exp(-(ice + crystal) / FREE_PATH["ice"] - film / FREE_PATH["carbon"])
    expected = scope.dose * apix**2 * left * np.clip(1 - 2 * wave, 0.02, None)
    frame = slice(margin, margin + size)
    xy = np.array(kept).reshape(-1, 2)
    rim = thing.diameter / 2 / apix
    inside = ((xy >= rim) & (xy <= size - 1 - rim)).all(1)
    counts = rng.poisson(expected[frame, frame])
    return Micrograph(counts, xy[inside], mask[frame, frame], scope, phase[frame, frame])


def random_micrograph(rng: np.random.Generator, *, across: float = 36.0, size: int = 640) -> Micrograph:
    """A micrograph of a random molecule, `across` px wide, under random conditions, to learn from.

    Defocus 0.8 to 3.5 µm, dose 15 to 60 electrons per Å², B 80 to 500 Å², crowded to nearly empty; every third field
    shows carbon.
    """
    thing = random_molecule(rng)
    apix = thing.diameter / across
    scope = Microscope(
        defocus=rng.uniform(8000, 35000),
        kilovolts=float(rng.choice([200, 300])),
        amplitude_contrast=rng.uniform(0.07, 0.12),
        b_factor=rng.uniform(80, 500),
        dose=rng.uniform(15, 60),
        apix=apix,
    )
    return micrograph(
        rng,
        size=size,
        apix=apix,
        particles=round(rng.uniform(0.1, 0.8) * (size / across) ** 2),
        carbon=rng.random() < 1 / 3,
        thing=thing,
        scope=scope,
        spacing=rng.uniform(0.5, 0.8),
    )


MODES = {"float32": np.float32, "int16": np.int16, "uint16": np.uint16}


def simulate(
    out: Path,
    *,
    n: int = 12,
    seed: int = 0,
    size: int = 1024,
    apix: float = 3.54,
    mode: str = "float32",
    shape: str = "betagal",
    dose: float = 20.0,
    overwrite: bool = False,
    progress: bool = True,
) -> None:
    """Write `n` simulated micrographs to the folder `out` as `data` reads them, with a README that says so.

    Every other one shows the carbon edge. `size` in px, `apix` in Å/px, `mode` the MRC's number type, `shape` one of
    SHAPES, `dose` in electrons per Å².
    """
    from tqdm import tqdm

    if shape not in SHAPES:
        raise InputError(f"simulate: no shape {shape!r}; there are {', '.join(SHAPES)}")
    if n < 1 or size < 128 or not 0.5 <= apix <= 12:
        raise InputError("simulate: n >= 1, size >= 128 px and 0.5 <= apix <= 12 Å/px are needed")
    with new_folder(out, "dataset.json", overwrite) as part:
        truth = []
        thing = SHAPES[shape](np.random.default_rng(465))
        streams = tqdm(np.random.default_rng(seed).spawn(n), "simulating", disable=None if progress else True)
        for k, stream in enumerate(streams):
            fields = (size * apix / 3625) ** 2 * (DIAMETER / thing.diameter) ** 2
            tried = stream.uniform(0.75, 1.25) * 210 * fields  # as dense as on EMPIAR-10017
            made = micrograph(
                stream, size=size, apix=apix, particles=round(tried), carbon=k % 2 == 1, thing=thing, dose=dose
            )
            name = f"sim_{seed}_{k:03d}" if shape == "betagal" else f"sim_{shape}_{seed}_{k:03d}"
            formats.write_mrc(
                part / "images" / f"{name}.mrc",
                made.counts.astype(MODES[mode]),
                apix,
                "SIMULATED by minidl: not a real micrograph",
            )
            formats.write_star(part / "coords" / f"{name}.star", formats.Picks(made.xy, np.ones(len(made.xy))))
            formats.write_mask(part / "semantic" / f"{name}.png", made.mask)
            truth.append({"name": name, "particles": len(made.xy), "carbon": k % 2 == 1, **asdict(made.microscope)})
        across = thing.diameter / apix
        about = {"kind": "simulated", "shape": shape, "diameter": across, "apix": apix, "seed": seed}
        about["micrographs"] = truth
        (part / "dataset.json").write_text(json.dumps(about, indent=1) + "\n")
        (part / "README.txt").write_text(
            f"SIMULATED micrographs ({n}), made by minidl's particle_picking simulate --seed {seed}.\n"
            "Nothing here was measured. images/*.mrc: electrons per pixel; coords/*.star: true particle centres;\n"
            "semantic/*.png: classes 0 background, 1 protein, 2 ice, 3 carbon; dataset.json: each microscope.\n"
        )
