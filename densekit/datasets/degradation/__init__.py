"""Low-resolution pictures as cameras, editors and web sites leave them: blur, resize, noise and JPEG, twice."""

from densekit.datasets.degradation.chain import degrade, random_seeds, seed_of
from densekit.datasets.degradation.presets import PRESETS, REAL_ESRGAN, Preset
from densekit.datasets.degradation.sharpen import sharpen
from densekit.datasets.degradation.validation import load_degraded

__all__ = ["PRESETS", "REAL_ESRGAN", "Preset", "degrade", "load_degraded", "random_seeds", "seed_of", "sharpen"]
