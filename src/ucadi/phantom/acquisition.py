# SPDX-License-Identifier: Apache-2.0
"""Scanners: what a site's protocol makes of a patient, so that shift and disease can be told apart."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import ndimage

from ucadi.imaging.grid import Grid
from ucadi.imaging.volume import Volume
from ucadi.phantom.patient import Patient
from ucadi.phantom.render import RenderedPatient
from ucadi.types import FindingClass

__all__ = ["STYLES", "SiteStyle", "acquire", "scan_grid"]

_MIN_HU, _MAX_HU = -1024, 3071


@dataclass(frozen=True)
class SiteStyle:
    """A site's protocol and its patients.

    Attributes:
        name: The site preset's letter.
        manufacturer: What the headers call the scanner; never a real make.
        kernel: What the headers call the reconstruction kernel.
        thickness_mm: Slice thickness and distance.
        blur_mm: Gaussian width of the kernel in-plane; 0 for none.
        edge_gain: Share of the detail finer than 1.2 mm that a sharp kernel adds again.
        noise_sd_hu: Standard deviation in soft tissue at this thickness.
        noise_width_mm: Gaussian width that white noise would need for the same correlation.
        offset_hu, gain: Calibration error: measured = gain * (HU + 1000) - 1000 + offset.
        fov_mm: Reconstructed field of view.
        padding_hu: Value outside the scan circle; None when the whole square is measured.
        intercept: DICOM rescale intercept.
        is_signed: Whether DICOM pixels are signed.
        class_mix: Shares of healthy, COVID-19, other viral and bacterial patients.
    """

    name: str
    manufacturer: str
    kernel: str
    thickness_mm: float
    blur_mm: float
    edge_gain: float
    noise_sd_hu: float
    noise_width_mm: float
    offset_hu: float
    gain: float
    fov_mm: float
    padding_hu: int | None
    intercept: int
    is_signed: bool
    class_mix: dict[FindingClass, float]


def _mix(healthy: float, covid: float, viral: float, bacterial: float) -> dict[FindingClass, float]:
    return dict(zip(FindingClass, (healthy, covid, viral, bacterial), strict=True))


# Noise: measured sd in soft tissue and blur width in pixels of 0.7 mm on public scans of each kind.
# Class mixes: like the published training sites, where some have no patient of a class at all.
STYLES: dict[str, SiteStyle] = {
    "A": SiteStyle(
        "A", "phantom A", "soft", 2.0, 0.5, 0.0, 24.0, 0.42, 0.0, 1.0, 350.0, None, -1024, False,
        _mix(0.42, 0.44, 0.07, 0.07),
    ),
    "B": SiteStyle(
        "B", "phantom B", "standard", 1.25, 0.4, 0.0, 32.0, 0.56, -6.0, 1.01, 370.0, -3024, -1024, True,
        _mix(0.45, 0.04, 0.06, 0.45),
    ),
    "C": SiteStyle(
        "C", "phantom C", "smooth", 5.0, 1.1, 0.0, 22.0, 0.84, 12.0, 0.985, 360.0, -2048, 0, True,
        _mix(0.42, 0.16, 0.42, 0.0),
    ),
    "D": SiteStyle(
        "D", "phantom D", "sharp", 1.0, 0.0, 0.6, 26.0, 0.44, -4.0, 1.0, 400.0, None, -1000, False,
        _mix(0.25, 0.25, 0.25, 0.25),
    ),
}  # fmt: skip
"""Site presets. D is held out: no network trains on it."""


def scan_grid(patient: Patient, style: SiteStyle, matrix: int) -> Grid:
    """Return the grid of a scan from the upper abdomen to the neck.

    Args:
        patient: Who is scanned; the lungs lie completely inside.
        style: Gives thickness and field of view.
        matrix: Rows and columns.
    """
    rng = np.random.default_rng([patient.seed, 3])  # where the operator sets the range
    (low, _, _), (high, _, _) = patient.thorax.lung_box_mm
    first, last = low - rng.uniform(18.0, 40.0), high + rng.uniform(10.0, 22.0)
    pixel = style.fov_mm / matrix
    corner = -0.5 * style.fov_mm + 0.5 * pixel
    shift_y, shift_x = rng.uniform(-6.0, 6.0, 2)
    slices = int(np.ceil((last - first) / style.thickness_mm))
    return Grid.from_spacing(
        (slices, matrix, matrix),
        (style.thickness_mm, pixel, pixel),
        (first, corner + 6.0 + shift_y, corner + shift_x),
    )


def acquire(rendered: RenderedPatient, style: SiteStyle, rng: np.random.Generator) -> Volume:
    """Scan a rendered patient.

    The slice profile is already in the rendered voxels; what follows is kernel, calibration, noise,
    padding and storage.

    Args:
        rendered: Ideal HU on the scan's grid.
        style: The site's protocol.
        rng: Source of the noise.

    Returns:
        HU as int16 on the rendered grid.
    """
    pixel_mm = rendered.grid.spacing_mm[1]
    hu = _apply_kernel(rendered.hu, style, pixel_mm)
    hu = (hu + np.float32(1000.0)) * np.float32(style.gain)
    hu += np.float32(style.offset_hu - 1000.0)
    hu += _draw_noise(rng, rendered.hu, style, pixel_mm)
    lowest = _MIN_HU if style.is_signed else max(_MIN_HU, style.intercept)  # unsigned pixels end at 0
    np.rint(np.clip(hu, lowest, _MAX_HU, out=hu), out=hu)
    voxels = hu.astype(np.int16)
    if style.padding_hu is not None:
        voxels[:, _outside_circle(voxels.shape[1:])] = style.padding_hu
    return Volume(voxels, rendered.grid)


def _apply_kernel(
    hu: Float[np.ndarray, "z y x"], style: SiteStyle, pixel_mm: float
) -> Float[np.ndarray, "z y x"]:
    """Blur or sharpen in-plane; a new array."""
    if style.blur_mm > 0.0:
        return _smooth(hu, style.blur_mm / pixel_mm)
    detail = hu - _smooth(hu, 1.2 / pixel_mm)
    return np.asarray(hu + np.float32(style.edge_gain) * detail)


def _smooth(values: Float[np.ndarray, "z y x"], sigma: float) -> Float[np.ndarray, "z y x"]:
    """Gaussian filter in-plane, sigma in pixels; a new array."""
    out = values
    for axis in (1, 2):
        out = _smooth_axis(out, sigma, axis)
    return out


def _smooth_axis(values: Float[np.ndarray, "z y x"], sigma: float, axis: int) -> Float[np.ndarray, "z y x"]:
    """Convolve one axis with the few taps that matter: adding shifted views beats a general filter here."""
    taps = _gaussian_taps(sigma)
    out: np.ndarray = values * taps[0]
    moved_out, moved_in = np.moveaxis(out, axis, 0), np.moveaxis(values, axis, 0)
    for shift, tap in enumerate(taps[1:], start=1):
        moved_out[shift:] += tap * moved_in[:-shift]
        moved_out[:-shift] += tap * moved_in[shift:]
        moved_out[:shift] += tap * moved_in[:shift]  # the edge holds
        moved_out[-shift:] += tap * moved_in[-shift:]
    return out


def _gaussian_taps(sigma: float) -> Float[np.ndarray, " taps"]:
    """Return the center tap and those of one side, summing to 1 over both sides."""
    reach = int(np.ceil(3.0 * sigma)) if sigma > 0.2 else 0
    impulse = np.zeros(2 * reach + 1)
    impulse[reach] = 1.0
    taps = ndimage.gaussian_filter1d(impulse, sigma, mode="constant", radius=reach) if reach else impulse
    return np.asarray(taps[reach:] / taps.sum(), dtype=np.float32)


def _draw_noise(
    rng: np.random.Generator, hu: Float[np.ndarray, "z y x"], style: SiteStyle, pixel_mm: float
) -> Float[np.ndarray, "z y x"]:
    """Draw correlated noise: a little stronger in the middle of the body, weaker in air."""
    noise = rng.standard_normal(hu.shape, dtype=np.float32)
    sigma = style.noise_width_mm / pixel_mm
    taps = _gaussian_taps(sigma)
    power = float(taps[0] ** 2 + 2.0 * (taps[1:] ** 2).sum())  # variance left per axis
    noise = _smooth(noise, sigma) if len(taps) > 1 else noise
    rows, columns = (np.linspace(-1.0, 1.0, n, dtype=np.float32) for n in hu.shape[1:])
    radius2 = rows[:, None] ** 2 + columns[None, :] ** 2
    noise *= np.float32(style.noise_sd_hu / power) * (1.08 - 0.25 * np.minimum(radius2, 1.0))
    return noise


def _outside_circle(shape: tuple[int, ...]) -> np.ndarray:
    """Tell which pixels lie outside the scan circle."""
    rows, columns = ((np.arange(n) - (n - 1) / 2.0) / (n / 2.0) for n in shape)
    return np.asarray(rows[:, None] ** 2 + columns[None, :] ** 2 > 1.0)
