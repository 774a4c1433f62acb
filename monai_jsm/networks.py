"""Registration networks: a global net, the joint saliency of what it achieved, and a local net that corrects it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from torch import Tensor, nn

from monai_jsm.data.errors import InputError
from monai_jsm.geometry import identity_grid
from monai_jsm.saliency import JointSaliency, JointSaliencyBlock

__all__ = [
    "PUBLISHED_LAYERS",
    "DenseWarp",
    "Exponential",
    "GlobalToLocalNet",
    "PublishedLayers",
    "Stages",
    "crop",
    "load_weights",
    "pad_to_multiple",
    "released_weights",
]


class Stages(NamedTuple):
    """Every stage of a global-to-local network, on the full grid; fields in voxels, each map (B, 1, *S).

    Attributes:
        ddf: the refined field, (B, D, *S): what the network predicts.
        coarse_ddf: the field of the global net, (B, D, *S).
        warped: the moving image pulled through ``coarse_ddf``.
        joint_saliency: high where fixed and ``warped`` share salient structure.
        saliency_fixed: saliency of fixed alone.
        saliency_warped: saliency of ``warped`` alone.
        mismatch: distance of the two structure tensors.
        trust: near one where fixed and ``warped`` correspond, near zero where structure stands in one of them only.
    """

    ddf: Tensor
    coarse_ddf: Tensor
    warped: Tensor
    joint_saliency: Tensor
    saliency_fixed: Tensor
    saliency_warped: Tensor
    mismatch: Tensor
    trust: Tensor


class DenseWarp(nn.Module):
    """Pull images through fields, ``warped(x) = image(x + ddf(x))``, border repeated, linear.

    Equal to MONAI's ``Warp``, but it scripts, keeps its grid as a buffer and trains several times faster.
    """

    def __init__(self) -> None:
        super().__init__()
        self.grid: Tensor
        self.register_buffer("grid", torch.zeros(1, 1), persistent=False)

    def forward(self, image: Tensor, ddf: Tensor) -> Tensor:
        """Warp a batch.

        Args:
            image: (B, C, *S), floating point, the dtype of ``ddf``.
            ddf: (B, D, *S), voxels, components in array-axis order.

        Returns:
            (B, C, *S).
        """
        shape = list(ddf.shape[2:])
        scale = torch.tensor([2.0 / max(n - 1, 1) for n in shape], dtype=ddf.dtype, device=ddf.device)
        still = self.grid
        if list(still.shape[1:-1]) != shape or still.device != ddf.device or still.dtype != ddf.dtype:
            still = (identity_grid(shape, ddf).movedim(1, -1) * scale - 1).flip(-1)  # (1, *S, D), D reversed
            if torch.jit.is_scripting():  # noqa: SIM114 a script cannot ask the next question
                self.grid = still
            elif not torch.compiler.is_exporting():  # a traced tensor must not outlive its trace
                self.grid = still
        grid = still + (ddf.movedim(1, -1) * scale).flip(-1)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=True)


class Exponential(nn.Module):
    """Scaling and squaring of a stationary velocity field, or the identity with no steps.

    Equal to :func:`monai_jsm.geometry.exponentiate`, but it scripts and keeps its grid.

    Args:
        steps: number of squarings.
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps
        self.warp = DenseWarp()

    def forward(self, dvf: Tensor) -> Tensor:
        """Flow over unit time of ``dvf``, both (B, D, *S), voxels of their own grid."""
        ddf = dvf / 2.0**self.steps
        for _ in range(self.steps):
            ddf = ddf + self.warp(ddf, ddf)
        return ddf


def _leaky(convolution: nn.Module, slope: float) -> nn.Sequential:
    return nn.Sequential(convolution, nn.LeakyReLU(slope))


class _FlowUNet(nn.Module):
    """A U-Net whose linear head starts near zero; it goes down as often as ``channels`` is long, less one.

    The input may be pooled before it enters, and the output stands at ``2**output_level`` of the input's voxels.
    """

    def __init__(
        self, spatial_dims: int, in_channels: int, channels: Sequence[int], pool: int, output_level: int
    ) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.pool = pool
        self.down = nn.ModuleList()
        for level, width in enumerate(channels):
            before = in_channels if level == 0 else channels[level - 1]
            stride = 2 if level > 0 or pool == 1 else 1
            self.down.append(_leaky(convolution(before, width, 3, stride, 1), 0.2))
        self.up = nn.ModuleList()
        width = channels[-1]
        for level in range(len(channels) - 2, output_level - 1, -1):
            self.up.append(_leaky(convolution(width + channels[level], channels[level], 3, 1, 1), 0.2))
            width = channels[level]
        self.last = _leaky(convolution(width, width, 3, 1, 1), 0.2)
        self.head = convolution(width, spatial_dims, 3, 1, 1)
        nn.init.normal_(self.head.weight, std=1e-5)
        nn.init.zeros_(self.head.bias)

    def forward(self, image: Tensor) -> Tensor:
        features = [_pool(image, self.pool)]
        for block in self.down:
            features.append(block(features[-1]))
        decoded = features[-1]
        for step, block in enumerate(self.up):
            skip = features[len(features) - 2 - step]
            decoded = block(torch.cat([F.interpolate(decoded, scale_factor=2.0, mode="nearest"), skip], 1))
        return self.head(self.last(decoded)).float()


def _pool(image: Tensor, factor: int) -> Tensor:
    if factor == 1:
        return image
    if image.dim() == 4:
        return F.avg_pool2d(image, factor)
    return F.avg_pool3d(image, factor)


def _enlarge(field: Tensor, factor: int) -> Tensor:
    """Linear interpolation to a grid ``factor`` times as fine, cell-centred as ``_pool`` is; values are kept."""
    mode = "bilinear" if field.dim() == 4 else "trilinear"
    return F.interpolate(field, scale_factor=float(factor), mode=mode, align_corners=False)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """Repeat the far border of an image (B, C, *S) until every axis is a multiple of ``multiple``."""
    padding: list[int] = []
    for axis in range(image.dim() - 1, 1, -1):
        padding += [0, -image.shape[axis] % multiple]
    if sum(padding) == 0:
        return image
    return F.pad(image, padding, mode="replicate")


def crop(field: Tensor, shape: list[int]) -> Tensor:
    """The first ``shape`` voxels of a field (B, D, *S), what stood before :func:`pad_to_multiple`."""
    for axis, size in enumerate(shape):
        field = field.narrow(axis + 2, 0, size)
    return field


class _ResidualStages(nn.Module):
    """Global net, warp, saliency, local net; the residual of the local net is composed with the coarse field.

    The global velocity stands at 1/4, the local one at 1/2 of the voxels; both are integrated at 1/2.
    """

    def __init__(
        self,
        spatial_dims: int,
        global_channels: Sequence[int],
        local_channels: Sequence[int],
        integration_steps: int,
        saliency: nn.Module,
        saliency_input: bool,
    ) -> None:
        super().__init__()
        self.multiple = 2 ** max(len(global_channels), len(local_channels))
        self.global_net = _FlowUNet(spatial_dims, 2, global_channels, pool=2, output_level=1)
        self.saliency = saliency
        self.saliency_input = saliency_input
        self.local_net = _FlowUNet(spatial_dims, 6 + spatial_dims, local_channels, pool=1, output_level=0)
        self.exponential = Exponential(integration_steps)
        self.warp = DenseWarp()

    def _integrate(self, dvf: Tensor, shape: list[int]) -> Tensor:
        """Displacement on the full grid of a velocity on the half grid, both in voxels of the full grid."""
        return crop(_enlarge(2 * self.exponential(dvf / 2), 2), shape)

    def forward(self, moving: Tensor, fixed: Tensor) -> Stages:
        shape = list(fixed.shape[2:])
        pair = pad_to_multiple(torch.cat([moving, fixed], 1), self.multiple)
        coarse_ddf = self._integrate(_enlarge(self.global_net(pair), 2), shape)
        warped = self.warp(moving, coarse_ddf)
        seen = self.saliency(fixed, warped)
        maps = torch.cat([seen.joint_saliency, seen.trust, seen.saliency_fixed, seen.saliency_warped], 1)
        if not self.saliency_input:
            maps = torch.zeros_like(maps)
        evidence = torch.cat([fixed, warped, maps, coarse_ddf], 1)
        residual = self._integrate(self.local_net(pad_to_multiple(evidence, self.multiple)), shape)
        ddf = residual + self.warp(coarse_ddf, residual)
        return _stages(ddf, coarse_ddf, warped, seen)


def _stages(ddf: Tensor, coarse_ddf: Tensor, warped: Tensor, seen: JointSaliency) -> Stages:
    return Stages(
        ddf,
        coarse_ddf,
        warped,
        seen.joint_saliency,
        seen.saliency_fixed,
        seen.saliency_warped,
        seen.mismatch,
        seen.trust,
    )


class PublishedLayers(NamedTuple):
    """A published layer list: (channels, kernel, stride) of each convolution per level, then the way up."""

    levels: tuple[tuple[tuple[int, int, int], ...], ...]
    up: tuple[int, ...]
    last: tuple[int, ...]
    skip_first: bool


PUBLISHED_LAYERS = {
    "digit": PublishedLayers(
        levels=(((16, 5, 1),), ((32, 5, 2), (64, 3, 1)), ((128, 3, 2), (256, 3, 1))),
        up=(64, 32),
        last=(16,),
        skip_first=False,
    ),
    "cardiac": PublishedLayers(
        levels=(
            ((128, 7, 1), (128, 5, 1)),
            ((256, 5, 2), (256, 3, 1)),
            ((512, 3, 2), (512, 3, 1)),
            ((1024, 3, 2), (1024, 3, 1)),
        ),
        up=(512, 256, 128),
        last=(),
        skip_first=True,
    ),
}


class _PublishedGlobalNet(nn.Module):
    """The published global net; every layer, flow heads and flow up-sampling too, ends in LeakyReLU(0.1)."""

    def __init__(self, spatial_dims: int, layers: PublishedLayers) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        transposed = Conv[Conv.CONVTRANS, spatial_dims]
        self.skip_first = layers.skip_first
        self.levels = nn.ModuleList()
        width = 2
        widths = []
        for level in layers.levels:
            blocks = []
            for channels, kernel, stride in level:
                blocks.append(_leaky(convolution(width, channels, kernel, stride, kernel // 2), 0.1))
                width = channels
            widths.append(width)
            self.levels.append(nn.Sequential(*blocks))
        self.flow = nn.ModuleList()
        self.flow_up = nn.ModuleList()
        self.up = nn.ModuleList()
        for step, channels in enumerate(layers.up):
            self.flow.append(_leaky(convolution(width, spatial_dims, 3, 1, 1), 0.1))
            self.flow_up.append(_leaky(transposed(spatial_dims, spatial_dims, 4, 2, 1), 0.1))
            self.up.append(_leaky(transposed(width, channels, 4, 2, 1), 0.1))
            width = channels + widths[-2 - step] + spatial_dims
        last = []
        for channels in layers.last:
            last.append(_leaky(convolution(width, channels, 3, 1, 1), 0.1))
            width = channels
        self.last = nn.Sequential(*last, _leaky(convolution(width, spatial_dims, 3, 1, 1), 0.1))

    def forward(self, image: Tensor) -> Tensor:
        features: list[Tensor] = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        decoded = image
        for step, (flow, flow_up, up) in enumerate(zip(self.flow, self.flow_up, self.up)):  # noqa: B905 not in TorchScript
            skip = features[len(features) - 2 - step]
            coarser = flow_up(flow(decoded))
            finer = up(decoded)
            decoded = torch.cat([skip, finer, coarser] if self.skip_first else [finer, skip, coarser], 1)
        return self.last(decoded)


class _PublishedStages(nn.Module):
    """The published network: the local net sees joint saliency and coarse flow only and predicts the whole flow.

    A published flow samples ``moving(x - flow)`` with the last axis first; it leaves this module as a ddf.
    """

    def __init__(self, spatial_dims: int, layers: PublishedLayers, saliency: nn.Module) -> None:
        super().__init__()
        convolution = Conv[Conv.CONV, spatial_dims]
        self.multiple = 2 ** (len(layers.levels) - 1)
        self.global_net = _PublishedGlobalNet(spatial_dims, layers)
        self.saliency = saliency
        widths = (1 + spatial_dims, 128, 64, 32, spatial_dims)
        self.local_net = nn.Sequential(
            *(_leaky(convolution(a, b, 3, 1, 1), 0.1) for a, b in itertools.pairwise(widths))
        )
        self.warp = DenseWarp()
        for module in self.modules():
            if isinstance(module, (Conv[Conv.CONV, spatial_dims], Conv[Conv.CONVTRANS, spatial_dims])):
                nn.init.kaiming_normal_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, moving: Tensor, fixed: Tensor) -> Stages:
        shape = list(fixed.shape[2:])
        pair = pad_to_multiple(torch.cat([moving, fixed], 1), self.multiple)
        coarse_flow = crop(self.global_net(pair), shape).float()
        coarse_ddf = -coarse_flow.flip(1)
        warped = self.warp(moving, coarse_ddf)
        seen = self.saliency(fixed, warped)
        flow = self.local_net(torch.cat([seen.joint_saliency, coarse_flow], 1)).float()
        return _stages(-flow.flip(1), coarse_ddf, warped, seen)


class GlobalToLocalNet(nn.Module):
    """Predict the field of a pair from coarse to fine, each stage reinforcing the other through joint saliency.

    A global net predicts a coarse field; the moving image is warped by it; a
    :class:`~monai_jsm.saliency.JointSaliencyBlock` compares fixed and warped; a local net, given both images,
    saliency, trust and the coarse field, predicts the residual that is composed with it. Nothing is detached, so the
    saliency carries a gradient back to the global net. Fields are exponentials of stationary velocities. Images of any
    size are padded inside.

    Args:
        spatial_dims: 2 or 3.
        global_channels: width of each level of the global net; the first stands at half resolution.
        local_channels: width of each level of the local net; the first stands at half resolution.
        integration_steps: squarings of the exponential; 0 takes the velocity for the displacement (not diffeomorphic).
        saliency: the block between the nets; None takes ``JointSaliencyBlock(spatial_dims)``, in the published
            architecture ``JointSaliencyBlock(spatial_dims, kind="published")``.
        arch: ``residual``, or ``published`` for the published networks, an ablation: the arguments above but
            ``saliency`` do not apply to it, nor does ``saliency_input``.
        published_layers: ``digit`` or ``cardiac``, which published layer list.
        saliency_input: whether the local net sees saliency and trust; if not, an ablation, it sees zeros in their place
            (as many parameters), while :class:`Stages` still holds the true maps, for a loss that weighs by them.

    Raises:
        ValueError: for an unknown ``arch``, ``published_layers`` or number of dimensions.

    Example:
        >>> net = GlobalToLocalNet(spatial_dims=2)
        >>> net(torch.rand(1, 2, 40, 33)).shape
        torch.Size([1, 2, 40, 33])

    Reference:
        Fu: Unsupervised Global To Local Nonrigid Image Registration Network Bidirectionally Reinforced By Joint
            Saliency
        Map. Thesis, Shanghai Jiao Tong University, 2019.
    """

    def __init__(
        self,
        spatial_dims: int,
        global_channels: Sequence[int] = (16, 32, 32, 64, 64),
        local_channels: Sequence[int] = (16, 32, 32, 32),
        integration_steps: int = 7,
        saliency: nn.Module | None = None,
        arch: str = "residual",
        published_layers: str = "digit",
        saliency_input: bool = True,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        if arch not in ("residual", "published"):
            raise ValueError(f"arch must be 'residual' or 'published', got {arch!r}.")
        if arch == "published":
            if published_layers not in PUBLISHED_LAYERS:
                raise ValueError(
                    f"published_layers must be one of {sorted(PUBLISHED_LAYERS)}, got {published_layers!r}."
                )
            saliency = JointSaliencyBlock(spatial_dims, kind="published") if saliency is None else saliency
            self.body: nn.Module = _PublishedStages(spatial_dims, PUBLISHED_LAYERS[published_layers], saliency)
        else:
            saliency = JointSaliencyBlock(spatial_dims) if saliency is None else saliency
            self.body = _ResidualStages(
                spatial_dims, global_channels, local_channels, integration_steps, saliency, saliency_input
            )

    def stages(self, image: Tensor) -> Stages:
        """Register a batch and return every stage.

        Args:
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].

        Returns:
            Fields and maps on the grid of ``image``, see :class:`Stages`.
        """
        image = image.float()
        return self.body(image[:, :1], image[:, 1:])

    def forward(self, image: Tensor, every_stage: bool = False) -> Tensor:
        """Register a batch.

        Args:
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].
            every_stage: return :class:`Stages` in place of the field (training needs them; not in TorchScript).

        Returns:
            ddf, (B, D, *S), voxels: ``warped(x) = moving(x + ddf(x))``.
        """
        stages = self.stages(image)
        if not torch.jit.is_scripting():  # noqa: SIM102 a script leaves out what stands under this line alone
            if every_stage:
                return stages  # type: ignore[return-value]
        return stages.ddf


def load_weights(network: nn.Module, path: str | Path) -> nn.Module:
    """Load the bare state dict that training writes as ``model.pt``.

    Args:
        network: takes the weights.
        path: of the state dict; read with ``weights_only=True``, so that nothing in it can run.

    Returns:
        The same network.

    Raises:
        InputError: if the file is absent, is not a state dict, or belongs to another network.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; give the model.pt that a training wrote.") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give the model.pt that a training wrote."
        ) from error
    except UnpicklingError as error:
        raise InputError(f"{path}: holds no plain weights; give the model.pt that a training wrote.") from error
    except (RuntimeError, EOFError, TypeError, AttributeError) as error:
        reason = (str(error) or "the file ends early").splitlines()[0].rstrip(".:").replace(". ", ", ")
        raise InputError(
            f"{path}: does not hold the weights of this network ({reason}); "
            "give the model.pt of a training of the same network."
        ) from error
    return network


def released_weights(spatial_dims: int) -> Path | None:
    """The file of the weights that this package brings along; None where none are released for so many axes.

    It is the bundle's own ``models/model.pt``: inside the package once that is installed, beside it in a clone.

    Example:
        >>> released_weights(2).name
        'model.pt'
    """
    package = Path(__file__).parent
    name = {2: "model.pt"}.get(spatial_dims)
    found = [home / "bundle" / "models" / name for home in (package, package.parent) if name]
    return next((path for path in found if path.is_file()), None)
