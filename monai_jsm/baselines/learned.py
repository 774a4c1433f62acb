"""The networks that were trained for comparison: on the same data, for as many steps as ours, weights kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_jsm.baselines.dirnet import DIRNet
from monai_jsm.baselines.voxelmorph import VoxelMorphNet
from monai_jsm.data.errors import InputError
from monai_jsm.networks import GlobalToLocalNet, load_weights, released_weights
from monai_jsm.registration import PairInferer

__all__ = ["NETWORKS", "register", "trained_weights"]

NETWORKS: dict[str, Callable[[int], nn.Module]] = {
    "dirnet": DIRNet,
    "voxelmorph_mse": VoxelMorphNet,
    "voxelmorph_ncc": VoxelMorphNet,
    "published": partial(GlobalToLocalNet, arch="published", published_layers="digit"),
    "ours_plain": partial(GlobalToLocalNet, saliency_input=False),
    "ours_saliency": GlobalToLocalNet,
    "ours_trust": partial(GlobalToLocalNet, saliency_input=False),
    "ours_both": GlobalToLocalNet,
}


def register(fixed: Tensor, moving: Tensor, spacing: Sequence[float], network: str, data: str) -> Tensor:
    """Register a pair with a network that was trained for comparison.

    ``configs/comparators/NETWORK.json`` of the bundle, laid over ``train.json``, says how each was trained; ``make
    comparators`` trains those whose weights are missing. A pair larger than 256 voxels (128 in 3D) along an axis is
    shrunk for the network, as for ours.

    All were trained as ours: Adam at 1e-3, falling with a cosine to a hundredth, batches of 4, at most 6450 steps on
    cine and 6500 on digits, augmented by swaps, flips, affine maps, warps and gamma, the weights of the best
    validation. ``published`` has the published digit network, also on cine, as the published cardiac one has 33 million
    parameters; and the published losses, that of digits and on cine that with the gradient term. It starts at 5e-4 in
    place of 1e-3. Its publication trained on digits at 5e-5 with batches of 64 for 48000 steps, on cine at 1e-4 with
    batches of 32 for 19200 steps, both rates fixed and without augmentation as far as is told.

    Args:
        fixed: (1, 1, *S), intensities in [0, 1].
        moving: (1, 1, *S), on the grid of fixed, intensities in [0, 1].
        spacing: D voxel edges in mm, in array-axis order; these networks do not ask for them.
        network: one of ``NETWORKS``: ``dirnet``, ``voxelmorph_mse``, ``voxelmorph_ncc``, ``published``; and ours
            without saliency (``ours_plain``), with saliency as the local net's input (``ours_saliency``), with trust
            in the loss alone (``ours_trust``) or with both (``ours_both``).
        data: on what it was trained, ``cine`` or ``digits``.

    Returns:
        ddf, (1, D, *S), voxels: ``warped(x) = moving(x + ddf(x))``.

    Raises:
        ValueError: for an unknown ``network``.
        InputError: if its weights are missing, or the pair is 3D, for which none were trained.
    """
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {sorted(NETWORKS)}, got {network!r}.")
    spatial_dims = fixed.dim() - 2
    if spatial_dims != 2:
        raise InputError(
            f"{network}: has weights for 2D pairs only, and this one is {spatial_dims}D; leave the method out."
        )
    weights = trained_weights(network, data)
    if weights is None:
        raise InputError(
            f"{network}: has no weights here that were trained on {data or 'such pairs'}; "
            "run make comparators MONAI_JSM_DATA=DIR in a clone of the project, which trains on cine and digits."
        )
    with torch.no_grad():
        return PairInferer()(torch.cat([moving, fixed], 1), _trained(network, weights))


def trained_weights(network: str, data: str) -> Path | None:
    """The file of the weights of a network of ``NETWORKS`` trained on ``cine`` or ``digits``; None where it is missing.

    It lies in ``models/comparators/`` of the bundle, inside the package or beside it in a clone. ``ours_saliency`` on
    ``cine`` is the released network itself.

    Example:
        >>> trained_weights("ours_saliency", "cine").name
        'model.pt'
    """
    if (network, data) == ("ours_saliency", "cine"):
        return released_weights(2)
    package = Path(__file__).parents[1]
    found = [home / "bundle/models/comparators" / data / f"{network}.pt" for home in (package, package.parent)]
    return next((path for path in found if path.is_file()), None)


@cache
def _trained(network: str, weights: Path) -> nn.Module:
    return load_weights(NETWORKS[network](2), weights).eval()
