"""Displacement fields as files that ITK, ANTs and Slicer read."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["file_affine", "write_field"]


def file_affine(affine: np.ndarray, spatial_dims: int) -> np.ndarray:
    """The 4x4 matrix that a NIfTI file of a 2D or 3D image carries.

    Args:
        affine: voxel-to-world matrix (RAS, mm), (D+1, D+1) or (4, 4).
        spatial_dims: D. A 2D image keeps the third axis of a (4, 4) matrix, and gets a unit one otherwise.

    Returns:
        (4, 4) float64.

    Example:
        >>> file_affine(np.array([[2.0, 0.0, 5.0], [0.0, 3.0, 6.0], [0.0, 0.0, 1.0]]), 2)[:, 3]
        array([5., 6., 0., 1.])
    """
    affine = np.asarray(affine, dtype=np.float64)
    if len(affine) == 4:
        return affine
    full = np.eye(4)
    full[:spatial_dims, :spatial_dims] = affine[:spatial_dims, :spatial_dims]
    full[:spatial_dims, 3] = affine[:spatial_dims, -1]
    return full


def write_field(path: str | Path, field: np.ndarray, affine: np.ndarray) -> None:
    """Write an ITK displacement field as NIfTI: vector intent 1007, mm in LPS axes, pull-back, on the fixed grid.

    The header's matrix is RAS, as NIfTI has it, while the vectors stay LPS: so ITK, ANTs and Slicer write and read it.

    Args:
        path: ends in ``.nii`` or ``.nii.gz``.
        field: (D, *S), mm, LPS, as :func:`monai_jsm.geometry.itk_displacement` makes it.
        affine: voxel-to-world matrix (RAS, mm) of the fixed grid, (D+1, D+1) or (4, 4).
    """
    spatial_dims = len(field)
    vectors = np.moveaxis(np.asarray(field, dtype=np.float32), 0, -1)  # (*S, D)
    vectors = vectors.reshape(*vectors.shape[:-1], *[1] * (4 - spatial_dims), spatial_dims)  # (X, Y, Z, 1, D)
    image = nib.Nifti1Image(vectors, file_affine(affine, spatial_dims))
    image.set_sform(image.affine, code=1)
    image.set_qform(image.affine, code=1)
    image.header.set_intent(1007)
    image.header.set_xyzt_units("mm")
    nib.save(image, path)
