"""From a batch to what MONAI's trainers and evaluators expect, and how they end on input that cannot be used."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch
from torch import Tensor

from monai_jsm.data.errors import InputError

__all__ = ["PreparePair", "explain_input_errors", "mixed_precision", "start_process_group"]

logger = logging.getLogger(__name__)


class PreparePair(PrepareBatch):
    """Stack moving and fixed into the one tensor that the network takes.

    Args:
        every_stage: ask the network for :class:`~monai_jsm.networks.Stages` in place of the field, as the loss needs
            it.
    """

    def __init__(self, every_stage: bool = False) -> None:
        self.every_stage = every_stage

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor, tuple[()], dict[str, Any]]:
        """Prepare a batch.

        Args:
            batchdata: ``moving_image`` and ``fixed_image``, each (B, 1, *S).
            device: where the network is.
            non_blocking: passed to ``Tensor.to``.
            **kwargs: passed to ``Tensor.to``.

        Returns:
            The pair (B, 2, *S) twice, as input and as target, and the network's further arguments.
        """
        images = [batchdata[key] for key in ("moving_image", "fixed_image")]
        plain = [image.as_tensor() if isinstance(image, MetaTensor) else image for image in images]
        pair = torch.cat(plain, 1).to(device=device, non_blocking=non_blocking, **kwargs)
        return pair, pair, (), {"every_stage": True} if self.every_stage else {}


def explain_input_errors() -> None:
    """End the process on an :class:`~monai_jsm.data.InputError` with its sentence alone and status 2.

    MONAI wraps an exception from inside a configuration in others; any other exception keeps its traceback.
    """
    previous = sys.excepthook
    if getattr(previous, "explains_input_errors", False):
        return
    sys.excepthook = _explaining(previous)


def _explaining(previous: Callable[..., Any]) -> Callable[..., Any]:
    def hook(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            previous(kind, error, traceback)
            return
        print(cause, file=sys.stderr)
        raise SystemExit(2)

    hook.explains_input_errors = True  # type: ignore[attr-defined]
    return hook


def mixed_precision(wanted: bool, device: torch.device) -> bool:
    """Whether an engine runs under autocast: where it is wanted and the device is CUDA; elsewhere a warning says no."""
    if wanted and device.type != "cuda":
        logger.warning("amp is for CUDA devices and stays off on this one (%s).", device)
    return wanted and device.type == "cuda"


def start_process_group(device: torch.device) -> None:
    """Join the processes that ``torchrun`` started: NCCL for CUDA devices, gloo for CPUs.

    Args:
        device: of this process; a CUDA device becomes the current one.
    """
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
