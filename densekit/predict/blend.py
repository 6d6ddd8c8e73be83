"""Networks that enlarge and see further than any tile: the whole image if memory holds it, else windows that fade."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from densekit.tiling import run_blended

SHARED = 32  # pixels of the input that neighbouring windows share; they fade into each other over these
NOTE = "the network sees further than any tile, so that tiles are not exact: they fade into each other"


def enlarge_blended(
    net: Callable[[Tensor], Tensor],
    x: Tensor,
    *,
    out_channels: int,
    scale: int,
    multiple_of: int,
    tile_size: int | None,
    notes: list[str],
    on_share: Callable[[float], None],
) -> Tensor:
    """Returns what a network makes of an image, or of its windows where the whole is too large.

    Args:
        net: (B, C, h, w) -> (B, out_channels, scale h, scale w).
        x: (B, C, H, W).
        out_channels: of the network.
        scale: likewise.
        multiple_of: likewise.
        tile_size: side of the windows, or None for the whole image.
        notes: gets `NOTE` where there is more than one window.
        on_share: called after each window with the share of the work that is done.

    Returns: (B, out_channels, scale H, scale W), float32 on the device of `x`.

    Raises:
        ConfigError, DeviceError: as `run_blended`.
    """

    def run(window: Tensor) -> Tensor:
        if window.shape[-2:].numel() < x.shape[-2:].numel() and NOTE not in notes:
            notes.append(NOTE)
        return net(window)

    return run_blended(
        run,
        x,
        num_outputs=out_channels,
        scale=scale,
        tile_size=tile_size,
        overlap=SHARED if tile_size is None else min(SHARED, tile_size // 2),
        multiple_of=multiple_of,
        on_tile=lambda done, total: on_share(done / total),
    )
