"""The ranges that random degradations are drawn from, by name."""

from __future__ import annotations

from dataclasses import dataclass

Range = tuple[float, float]

# Kinds of blur and how often each is drawn where it is no sinc.
KERNELS = {
    "iso": 0.45,
    "aniso": 0.25,
    "generalized_iso": 0.12,
    "generalized_aniso": 0.03,
    "plateau_iso": 0.12,
    "plateau_aniso": 0.03,
}
KERNEL_SIZES = tuple(range(7, 22, 2))  # pixels
MODES = ("area", "bilinear", "bicubic")  # of each resize, each as often


@dataclass(frozen=True)
class Order:
    """One round of blur, resize, noise and JPEG. Rates are probabilities; a range is drawn from uniformly.

    Attributes:
        blur_rate: of any blur at all.
        sinc_rate: of a sinc filter in its place.
        sigma: of the Gaussian kernels, in pixels.
        generalized_beta: exponent of the generalized ones; below 1 and above 1 come equally often, 1 is the Gaussian.
        plateau_beta: exponent of the plateaus.
        resize_rates: of up, down and keep.
        resize: lowest factor down and highest factor up.
        gaussian_rate: of Gaussian noise; else it is Poisson's.
        gaussian: standard deviation in levels of 0..255.
        poisson: factor of the noise that counting light gives.
        grey_rate: of noise that is the same in all channels.
        quality: of JPEG.
    """

    sigma: Range
    resize_rates: tuple[float, float, float]
    resize: Range
    gaussian: Range
    poisson: Range
    blur_rate: float = 1.0
    sinc_rate: float = 0.1
    generalized_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)
    gaussian_rate: float = 0.5
    grey_rate: float = 0.4
    quality: tuple[int, int] = (30, 95)


@dataclass(frozen=True)
class Preset:
    """Two rounds, then the resize to the final size with a sinc filter, before or after the second round's JPEG."""

    first: Order
    second: Order
    final_sinc_rate: float = 0.8
    sinc_before_jpeg_rate: float = 0.5


# Source: Wang et al. (ICCVW 2021), section 4.1, and options/train_realesrgan_x4plus.yml of xinntao/Real-ESRGAN, which
# train_realesrnet_x4plus.yml and the x2plus files share; the resize before JPEG half of the time, kernel sizes and the
# cutoffs in recipes.py are literals of its data set and model.
REAL_ESRGAN = Preset(
    first=Order(
        sigma=(0.2, 3.0),
        resize_rates=(0.2, 0.7, 0.1),
        resize=(0.15, 1.5),
        gaussian=(1.0, 30.0),
        poisson=(0.05, 3.0),
    ),
    second=Order(
        blur_rate=0.8,
        sigma=(0.2, 1.5),
        resize_rates=(0.3, 0.4, 0.3),
        resize=(0.3, 1.2),
        gaussian=(1.0, 25.0),
        poisson=(0.05, 2.5),
    ),
)

PRESETS = {"real-esrgan": REAL_ESRGAN}
