import subprocess
import sys

import pytest
import torch
from monai.data import MetaTensor

from monai_jsm.engines import PreparePair

RAISES = """
from monai_jsm.data import InputError
from monai_jsm.engines import explain_input_errors
explain_input_errors()
explain_input_errors()
try:
    {raising}
except Exception as error:
    raise RuntimeError("Failed to evaluate a configuration") from error
"""


def test_moving_comes_first_and_leaves_its_metadata_behind():
    batch = {"fixed_image": MetaTensor(torch.zeros(2, 1, 5, 6)), "moving_image": MetaTensor(torch.ones(2, 1, 5, 6))}
    image, target, arguments, options = PreparePair()(batch, device="cpu")
    assert type(image) is torch.Tensor
    assert image.mean(dim=(0, 2, 3)).tolist() == [1.0, 0.0]
    assert target is image
    assert (arguments, options) == ((), {})
    assert PreparePair(every_stage=True)(batch)[3] == {"every_stage": True}


@pytest.mark.parametrize(
    ("raising", "status", "traceback"),
    [("raise InputError('a.nii: holds NaN; replace it.')", 2, False), ("raise KeyError('b')", 1, True)],
)
def test_unusable_input_ends_with_its_sentence_alone_and_others_with_a_traceback(raising, status, traceback):
    program = [sys.executable, "-W", "ignore", "-c", RAISES.format(raising=raising)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.returncode == status
    assert ("Traceback" in done.stderr) == traceback
    if not traceback:
        assert done.stderr == "a.nii: holds NaN; replace it.\n"
