"""Convolutions with what precedes and follows them, by the fastest operator of the device."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekit.blocks.inference.cpu import has_fast_products, uses_onednn
from densekit.blocks.inference.planned import Packed, Planned, affine, per_map
from densekit.blocks.inference.winograd import Kernels, WinogradChain, gain_of, is_chain_faster, without_border

LANES = 8  # float32 numbers in a vector register of AVX2
NARROW, WIDE = 3, 64  # of a narrow convolution: most maps made, fewest maps read for each of these
HAS_AVX512: bool = torch.backends.cpu.get_cpu_capability() == "AVX512"
SHORT, MANY = 4096, 48  # with AVX2, of a 1x1 convolution as torch's product: most pixels, fewest maps made
LIGHT = 2**20  # with AVX-512, of one: most multiplications
TINY, FEW = 16 if HAS_AVX512 else 64, 64  # of a 3x3 one by torch's own operator: most pixels, most maps made
Way = Callable[[Tensor], Tensor]
Sum = Callable[[Tensor, Tensor], Tensor]


class PlannedConv(Packed):
    """A convolution, with the batch norm behind it folded in, and a ReLU or leaky ReLU.

    On CPUs it runs as one operator of oneDNN, on weights in the layout that oneDNN likes best; or by Winograd's
    algorithm (3x3, many maps), or by torch's own operators (few pixels), where that is faster.

    Args:
        weight: (C', C / groups, k, k).
        bias: (C',) or None.
        like: the convolution, planned or not, whose type, stride, padding, dilation and groups it has.
        norm: of the convolution's result.
        slope: of a leaky ReLU at the end, 0 for a ReLU; None where there is none.
        is_part: whether it is a part of a sum, to which others are added in place.
        is_padded: whether the maps come with the border that the convolution would pad with.

    Attributes:
        gives: the type of the result, None for that of the weights, in which it computes whatever maps come.

    Shapes: as the convolution's; on CPUs channels last, or a slice of maps that are.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        like: nn.Conv2d | PlannedConv,
        *,
        norm: nn.BatchNorm2d | None = None,
        slope: float | None = None,
        is_part: bool = False,
        is_padded: bool = False,
    ) -> None:
        super().__init__()
        dtype, weight = like.weight.dtype, weight.detach().double()
        bias = weight.new_zeros(len(weight)) if bias is None else bias.detach().double()
        if norm is not None:
            scale, shift = affine(norm)
            weight, bias = weight * scale.view(-1, 1, 1, 1), bias * scale + shift
        self.register_buffer("weight", weight.to(dtype).contiguous(memory_format=torch.channels_last))
        self.register_buffer("bias", bias.to(dtype))
        self.stride: list[int] = [int(number) for number in like.stride]
        self.padding: list[int] = [0 if is_padded else int(number) for number in like.padding]
        self.dilation: list[int] = [int(number) for number in like.dilation]
        self.groups: int = like.groups
        self.slope: float | None = slope
        self.gives: torch.dtype | None = None
        # Twelve maps take oneDNN 1.4 times as long as sixteen do (AVX2, 3x3).
        self.spare: int = -len(weight) % LANES if like.groups == 1 and not is_part else 0
        self.is_plain_3x3: bool = self._geometry == ([1, 1], [1, 1], [1, 1], 1) and weight.shape[2:] == (3, 3)
        self.is_plain_1x1: bool = self._geometry == ([0, 0], [1, 1], [1, 1], 1) and weight.shape[2:] == (1, 1)
        self.gain: float = gain_of([weight.shape[1]], [len(weight)]) if self.is_plain_3x3 else 0.0

    @classmethod
    def of(cls, conv: nn.Conv2d, *, norm: nn.BatchNorm2d | None = None, slope: float | None = None) -> PlannedConv:
        """Returns the planned form of a convolution."""
        return cls(conv.weight, conv.bias, conv, norm=norm, slope=slope)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.weight.dtype)
        y = self.packed(x, self.way)(x)
        return y if self.gives is None else y.to(self.gives)

    def add_to(self, total: Tensor, x: Tensor) -> Tensor:
        """Adds the convolution of `x` to `total` in place, then applies the activation; returns `total`."""
        return self.packed(x, self._sum, use="sum")(total, x)

    def way(self, x: Tensor) -> Way:
        """Returns the fastest way for maps of this shape and type; it holds no reference to this part."""
        if is_chain_faster(x, self.gain):
            return self._by_chain()
        if not uses_onednn(x) or self._is_tiny(x):
            return self._by_torch(self.slope)
        if not self.is_plain_1x1:
            return self._by_onednn(x)
        if self._is_product_faster(x):
            return self._by_product()
        return self._by_linear(x) if HAS_AVX512 else self._by_onednn(x)

    def _by_chain(self) -> Way:
        chain = self.common("chain", lambda: WinogradChain([Kernels([self.weight], self.bias, self.slope)]))

        def run(x: Tensor) -> Tensor:
            return without_border(chain(x), x)[:, x.shape[1] :].contiguous(memory_format=torch.channels_last)

        return run

    def _by_product(self) -> Way:
        weight = self.common("transposed", lambda: self.weight.flatten(1).t().contiguous())
        bias, slope = self.bias, self.slope

        def run(x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1)
            product = activated_(torch.addmm(bias, x.flatten(0, 2), weight), slope)
            return product.view(*x.shape[:3], len(bias)).permute(0, 3, 1, 2)

        return run

    def _by_linear(self, x: Tensor) -> Way:
        """A 1x1 convolution as oneDNN's product of matrices, whose call takes 8 us less than that of a convolution.

        With AVX-512 it is as fast otherwise; with AVX2 it is a tenth slower where more than 256 maps are read.
        """
        weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.flatten(1), pixels(x))
        bias, activation = self.bias, self._activation
        multiply = torch.ops.mkldnn._linear_pointwise.default

        def run(x: Tensor) -> Tensor:
            x = x.permute(0, 2, 3, 1).contiguous()
            y: Tensor = multiply(x, weight, bias, *activation, "")
            return y.permute(0, 3, 1, 2)

        return run

    def _by_onednn(self, x: Tensor) -> Way:
        weight, bias = self._constants(x, self.spare)
        geometry, activation, made = self._geometry, self._activation, len(self.bias)
        convolve = torch.ops.mkldnn._convolution_pointwise.default

        def run(x: Tensor) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            y: Tensor = convolve(x, weight, bias, *geometry, *activation, "")
            y = y.contiguous(memory_format=torch.channels_last)  # a single map may come in any layout, and so go out
            return y[:, :made] if made < y.shape[1] else y

        return run

    def _by_torch(self, slope: float | None) -> Way:
        weight, bias = self.weight, self.bias
        padding, stride, dilation, groups = self._geometry
        return lambda x: activated_(F.conv2d(x, weight, bias, stride, padding, dilation, groups), slope)

    def _sum(self, x: Tensor) -> Sum:
        """Returns how the convolution of such maps is added to a total, in place."""
        slope = self.slope
        if not uses_onednn(x):
            convolve = self._by_torch(None)
            return lambda total, x: activated_(total.add_(convolve(x)), slope)
        constants, geometry = self._constants(x), self._geometry
        relu = "relu" if slope == 0.0 else None  # the one activation that oneDNN applies to a sum

        def run(total: Tensor, x: Tensor) -> Tensor:
            x = x.contiguous(memory_format=torch.channels_last)
            torch.ops.mkldnn._convolution_pointwise_.binary(total, x, *constants, *geometry, "add", 1.0, relu, [], "")
            return total if relu else activated_(total, slope)

        return run

    # A call of oneDNN's operator takes 20 us (AVX-512) to 40 us (AVX2) beside the convolution, which short ones feel.

    def _is_product_faster(self, x: Tensor) -> bool:
        """Says whether a 1x1 convolution takes less time as torch's product.

        Of 512 to 128 maps of 7x7, AVX2: 93 us of 131. Of 128 to 128 maps of 4x4, AVX-512: 15 of 28.
        """
        if HAS_AVX512:
            is_short = pixels(x) * self.weight.numel() <= LIGHT
        else:
            is_short = pixels(x) <= SHORT and len(self.bias) >= MANY
        return is_short and x.dtype == torch.float32 and has_fast_products()

    def _is_tiny(self, x: Tensor) -> bool:
        """Says whether torch's own 3x3 convolution takes less time: 72 us of 112, of 128 to 32 maps of 7x7, AVX2."""
        is_short = pixels(x) <= TINY and len(self.bias) <= FEW
        return is_short and self.is_plain_3x3 and len(x) == 1 and x.dtype == torch.float32

    @property
    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        return self.padding, self.stride, self.dilation, self.groups

    @property
    def _activation(self) -> tuple[str, list[float]]:
        """The activation as oneDNN's operators name it."""
        if self.slope is None:
            return "none", []
        return ("leaky_relu", [self.slope]) if self.slope else ("relu", [])

    def _constants(self, x: Tensor, spare: int = 0) -> tuple[Tensor, Tensor]:
        """Returns weights as oneDNN wants them for such maps, and bias, for `spare` maps more.

        For maps of another size it may want another layout, and then reorders weights at each call: that was seen to
        take 2 to 20 times as long as the convolution.
        """
        weight = F.pad(self.weight.contiguous(), (0, 0) * 3 + (0, spare))
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry, list(x.shape))
        return packed, F.pad(self.bias, (0, spare))


class NarrowConv(Planned):
    """A convolution of many maps to a few, for CPUs: what each pixel adds to each of its neighbours, then their sums.

    The first is a 1x1 convolution, the second hardly any work. oneDNN makes eight maps where one is asked for; so this
    is 72 products against 16 for one map by 3x3.

    Args:
        conv: one that `is_narrow`.

    Shapes: as the convolution's.
    """

    bias: Tensor

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.size: int = conv.kernel_size[0]
        # A pixel adds to the neighbour on its left what that one takes from its right: the kernel turned by half.
        weight = conv.weight.detach().flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)[..., None, None]
        one = nn.Conv2d(conv.in_channels, len(weight), 1, dtype=conv.weight.dtype, device="meta")  # draws no weights
        self.spread: PlannedConv = PlannedConv(weight, None, one)
        self.register_buffer("bias", per_map(torch.zeros(1) if conv.bias is None else conv.bias.detach(), conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        spread = self.spread(x)
        exact = spread.to(torch.promote_types(spread.dtype, torch.float32)).flatten(2)  # else each sum is rounded
        return F.fold(exact, x.shape[2:], self.size, padding=self.size // 2).to(spread.dtype) + self.bias


def is_narrow(conv: nn.Conv2d) -> bool:
    """Says whether `NarrowConv` takes less time: measured with AVX2 for 64 to 256 maps, one and three of them made."""
    size = conv.kernel_size[0]
    is_plain = (conv.stride, conv.dilation, conv.groups) == ((1, 1), (1, 1), 1)
    is_same = size % 2 == 1 and size > 1 and conv.kernel_size == (size, size) and conv.padding == (size // 2,) * 2
    return is_plain and is_same and conv.out_channels <= NARROW and conv.in_channels >= WIDE * conv.out_channels


def activated_(x: Tensor, slope: float | None) -> Tensor:
    """Applies a leaky ReLU in place, a ReLU where the slope is 0, nothing where it is None; returns `x`."""
    return x if slope is None else F.leaky_relu_(x, slope) if slope else F.relu_(x)


def pixels(x: Tensor) -> int:
    """Returns the pixels of a batch."""
    return x.shape[0] * x.shape[2] * x.shape[3]
