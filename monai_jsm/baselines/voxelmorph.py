"""VoxelMorph, diffeomorphic, with MONAI's network."""

from __future__ import annotations

import torch.nn.functional as F
from monai.networks.layers.factories import Conv
from monai.networks.nets import VoxelMorphUNet
from torch import Tensor, nn

from monai_jsm.networks import Exponential, crop, pad_to_multiple

__all__ = ["VoxelMorphNet"]


class VoxelMorphNet(nn.Module):
    """Predict a stationary velocity with MONAI's ``VoxelMorphUNet`` and integrate it at half size, in 2D and 3D.

    Encoder 16, 32, 32, 32 and decoder 32, 32, 32, 32, 32, 16, 16 as published, 7 squarings. The field is that of
    MONAI's ``VoxelMorph(half_res=True)`` but for three things: on the half grid a displacement counts half as many
    voxels (there it counts twice as many, so that its composition reads four times too far), the velocity is repeated
    beyond the border (there it is zero), and 2D is possible. Weights start as in the authors' code: those of the last
    convolution near zero, all others after He. Images of any size are padded inside.

    ``configs/comparators/voxelmorph_mse.json`` and ``voxelmorph_ncc.json`` of the bundle train it with the mean squared
    error or with local correlation over 9 voxels, as our own networks are trained, so that the comparison is one of
    networks and losses. That differs from the authors' training:

    - the gradient of the displacement is penalised at full size; theirs is that of the velocity at half size;
    - the penalty is MONAI's ``DiffusionLoss``, central differences squared and summed over the axes; theirs takes
      forward differences and the mean over the axes;
    - its weight with local correlation is 0.02, that of our own network; theirs is 1. With the mean squared error it is
      0.01, as in their program;
    - Adam at 1e-3, falling with a cosine to 1e-5, batches of 4, at most 6450 steps (6500 on digits), the weights of the
      best validation; theirs is Adam at 1e-4 throughout, for many more steps;
    - augmentation by swaps, flips, affine maps, warps and a gamma that is drawn for each image by itself, also where
      the loss is the mean squared error, which takes such a difference of intensities for a mismatch.

    Args:
        spatial_dims: 2 or 3.
        integration_steps: squarings.

    Example:
        >>> import torch
        >>> VoxelMorphNet(spatial_dims=2)(torch.rand(1, 2, 40, 33)).shape
        torch.Size([1, 2, 40, 33])

    Reference:
        Balakrishnan, Zhao, Sabuncu, Guttag, Dalca: VoxelMorph: a learning framework for deformable medical image
        registration. IEEE Trans. Med. Imaging 38(8), 2019, 1788-1800. https://doi.org/10.1109/TMI.2019.2897538
        Dalca, Balakrishnan, Guttag, Sabuncu: Unsupervised learning of probabilistic diffeomorphic registration for
        images and surfaces. Medical Image Analysis 57, 2019, 226-236. https://doi.org/10.1016/j.media.2019.07.006
    """

    def __init__(self, spatial_dims: int, integration_steps: int = 7) -> None:
        super().__init__()
        self.backbone = VoxelMorphUNet(
            spatial_dims=spatial_dims,
            in_channels=2,
            unet_out_channels=32,
            channels=(16, *[32] * 7),  # of each level: on the way down, on the way up
            final_conv_channels=(16, 16),
        )
        convolutions = [m for m in self.backbone.modules() if isinstance(m, Conv[Conv.CONV, spatial_dims])]
        for convolution in convolutions:
            nn.init.kaiming_normal_(convolution.weight, a=0.2)
            nn.init.zeros_(convolution.bias)
        nn.init.normal_(convolutions[-1].weight, std=1e-5)
        self.multiple = 16  # the U-Net halves its input four times
        self.mode = {2: "bilinear", 3: "trilinear"}[spatial_dims]
        self.exponential = Exponential(integration_steps)

    def forward(self, image: Tensor) -> Tensor:
        """Register a batch.

        Args:
            image: (B, 2, *S), ``[moving, fixed]``, intensities in [0, 1].

        Returns:
            ddf, (B, D, *S), voxels: ``warped(x) = moving(x + ddf(x))``.
        """
        dvf = self.backbone(pad_to_multiple(image.float(), self.multiple)).float()
        half = F.interpolate(dvf / 2, scale_factor=0.5, mode=self.mode, align_corners=True)
        ddf = F.interpolate(2 * self.exponential(half), scale_factor=2.0, mode=self.mode, align_corners=True)
        return crop(ddf, list(image.shape[2:]))
