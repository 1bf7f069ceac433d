"""What an autoencoder learns of spectra without a type: 32 numbers that hold a star, and which stars they miss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import minidl
from minidl.train import predict

from ..common import Table, write_csv
from . import data, network
from .data import Stars
from .network import Settings, StarNetwork
from .preprocess import GRIDS
from .study import SNR, noisy

OUTLIERS = 8  # drawn


class Squeezed(NamedTuple):
    """Of N spectra never trained on: what the autoencoder read (N, bins), made of it (N, bins), its code (N, 32).

    misfit (N,): rms of the difference, in units of the flux at 5550 Å. denoised: for each signal to noise, the rms
    error of the noisy spectra and of what the autoencoder made of them.
    """

    stars: Stars
    flux: np.ndarray
    rebuilt: np.ndarray
    code: np.ndarray
    misfit: np.ndarray
    denoised: dict[int, tuple[float, float]]
    example: tuple[np.ndarray, np.ndarray]  # a noisy spectrum (SNR 10) of the star in the middle, and denoised


def squeeze(stars: Stars, settings: Settings, progress: bool = True) -> tuple[Squeezed, dict[str, Any]]:
    """Pre-train on all spectra outside the test part, typed or not; rebuild those of the test part."""
    test = data.split(stars, fold=settings.fold, seed=settings.seed)["test"]
    names = {stars.stars[i] for i in test}
    rest = stars.flux[[i for i, star in enumerate(stars.stars) if star not in names]]
    rng = minidl.manual_seed(settings.seed)
    model = StarNetwork([], rest, grid=GRIDS[settings.grid])
    trained = network.pretrain(model.fill(rest), model, settings, rng, progress)
    tested = stars.take(test)
    flux = model.fill(tested.flux)

    def through(part: Any, x: np.ndarray) -> np.ndarray:
        return predict(part, x.astype(np.float32), batch_size=256)

    def rebuild(x: np.ndarray) -> np.ndarray:
        x = (x - model.mean) / model.scale
        out = through(trained, x[:, None] if settings.network == "autoencoder" else x)
        return out.reshape(len(x), -1) * model.scale + model.mean

    shown = (flux - model.mean) / model.scale
    code = through(trained.encoder, shown[:, None] if settings.network == "autoencoder" else shown)
    rebuilt = rebuild(flux)
    noise = {snr: noisy(snr, flux, np.random.default_rng(snr)) for snr in SNR}
    denoised = {snr: (_rms(x - flux), _rms(rebuild(x) - flux)) for snr, x in noise.items()}
    middle = int(np.argsort(tested.codes())[len(tested) // 2])
    example = (noise[10][middle], rebuild(noise[10][middle : middle + 1])[0])
    misfit = np.sqrt(((rebuilt - flux) ** 2).mean(1))
    found = Squeezed(tested, flux, rebuilt, code, misfit, denoised, example)
    return found, {"unlabelled": len(rest), "tested": len(tested), "seed": settings.seed, "network": settings.network}


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt((x**2).mean()))


def components(code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of codes: (N, 32) -> coordinates (N, 32), longest first; the share each explains (32,)."""
    u, s, _ = np.linalg.svd(code - code.mean(0), full_matrices=False)
    return u * s, s**2 / (s**2).sum()


def neighbours_right(code: np.ndarray, cls: np.ndarray, neighbours: int = 5) -> float:
    """Share of spectra whose class is that of most of their nearest neighbours in the code space (N, 32)."""
    distance = ((code[:, None] - code[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    near = cls[np.argsort(distance, 1)[:, :neighbours]]
    return float((np.array([np.bincount(row).argmax() for row in near]) == cls).mean())


def tables(found: Squeezed, about: dict[str, Any]) -> list[Table]:
    """How well spectra are rebuilt and noise is taken out, and which stars do not fit."""
    cls = found.stars.classes()
    typical = float(np.median(found.misfit))
    fit = Table(
        f"{about['network']}: {about['unlabelled']} spectra without types; {about['tested']} others rebuilt",
        ["median rms misfit", "90 % below", "class of 5 neighbours right: in the code", "in the flux"],
        [[f"{typical:.4f}", f"{np.quantile(found.misfit, 0.9):.4f}", f"{neighbours_right(found.code, cls):.3f}",
          f"{neighbours_right(found.flux, cls):.3f}"]],
        "Misfits in units of the flux at 5550 Å.",
    )  # fmt: skip
    clean = Table(
        "Noise taken out: rms error before -> after",
        [f"SNR {snr}" for snr in found.denoised],
        [[f"{before:.3f} -> {after:.3f}" for before, after in found.denoised.values()]],
    )
    s, worst = found.stars, np.argsort(-found.misfit)[:OUTLIERS]
    rows = [[s.libraries[i], s.files[i], s.types[i], f"{found.misfit[i] / typical:.1f}"] for i in worst]
    odd = Table("The stars that fit worst", ["library", "file", "type", "misfit / median"], rows)
    return [fit, clean, odd]


def write(found: Squeezed, about: dict[str, Any], out: Path) -> list[tuple[Path, str]]:
    """Write misfit.csv and the figures into `out` -> (path, caption) of each figure."""
    from . import figures

    out.mkdir(parents=True, exist_ok=True)
    s = found.stars
    rows = [[s.libraries[i], s.files[i], s.types[i], f"{found.misfit[i]:.5f}"] for i in np.argsort(-found.misfit)]
    write_csv(out / "misfit.csv", ["library", "file", "type", "misfit"], rows, overwrite=True)
    return figures.draw_squeezed(found, out)
