import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_jsm.geometry import jacobian_determinant
from monai_jsm.metrics import (
    UNITS,
    CaseErrorMetric,
    TargetRegistrationErrorMetric,
    field_measures,
    label_measures,
    landmark_measures,
    summarise,
    target_registration_error,
)


@given(shift=st.floats(-100, 100), seed=st.integers(0, 2**16))
def test_moving_both_sets_together_changes_nothing(shift, seed):
    points = torch.randn(2, 2, 5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    before = target_registration_error(points[0], points[1], (0.7, 1.1, 2.5))
    torch.testing.assert_close(target_registration_error(points[0] + shift, points[1] + shift, (0.7, 1.1, 2.5)), before)


def test_landmark_sets_that_differ_are_refused_never_shortened():
    with pytest.raises(ValueError, match="pair up one to one"):
        target_registration_error(torch.zeros(5, 2), torch.zeros(4, 2), (1.0, 1.0))
    with pytest.raises(ValueError, match="2 positive lengths"):
        target_registration_error(torch.zeros(5, 2), torch.zeros(5, 2), (1.0, 0.0))


def test_the_metric_means_over_cases_whatever_their_number_of_landmarks():
    metric = TargetRegistrationErrorMetric()
    few, many = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    metric([few, many], [torch.zeros(1, 2), torch.zeros(3, 2)])
    assert metric.get_buffer().shape == (2, 1)
    assert metric.aggregate().item() == pytest.approx((5 + 2) / 2)


def test_padding_and_cases_without_landmarks_do_not_count():
    metric = TargetRegistrationErrorMetric()
    nan = float("nan")
    carried = torch.tensor([[[3.0, 4.0], [nan, nan]], [[nan, nan], [nan, nan]]])
    metric(carried, 0 * carried)
    assert metric.aggregate().item() == pytest.approx(5.0)


@pytest.mark.parametrize("statistic", ["mean", "median", "p95", "max"])
def test_a_diverged_prediction_is_an_infinite_error_and_not_padding(statistic):
    metric = TargetRegistrationErrorMetric(statistic)
    metric(torch.full((1, 5, 2), float("nan")), torch.zeros(1, 5, 2))
    metric(torch.ones(1, 5, 2), torch.zeros(1, 5, 2))
    assert metric.aggregate().item() == float("inf")


def test_a_field_that_is_not_a_number_is_folded():
    assert field_measures(torch.full((1, 6, 7), float("nan")))["folding"] == 100


def test_a_metric_that_saw_nothing_says_so():
    with pytest.raises(ValueError, match="has not seen a case"):
        CaseErrorMetric().aggregate()


def test_the_metric_needs_the_reference():
    with pytest.raises(ValueError, match="reference landmarks"):
        TargetRegistrationErrorMetric()(torch.zeros(1, 5, 2))


def test_summary_of_known_errors():
    before, after = torch.tensor([4.0, 4.0, 4.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 5.0])
    errors = {"before_mm": before, "after_mm": after, "before_voxel": before / 2, "after_voxel": after / 2}
    measures = landmark_measures({**errors, "affine_mm": before - 1})
    assert measures["tre_mean_affine"] == pytest.approx(3.0)
    assert measures["tre_mean_after"] == pytest.approx(2.75)
    assert measures["tre_median_after"] == pytest.approx(2.5)
    assert measures["tre_max_after_voxel"] == pytest.approx(2.5)
    assert measures["share_improved"] == pytest.approx(75.0)
    assert set(measures) <= set(UNITS)


def test_a_linear_field_has_one_jacobian_and_a_folded_one_is_counted():
    rows = torch.arange(12.0)[:, None].expand(12, 10)
    grown = torch.stack([0.1 * rows, torch.zeros(12, 10)])
    measures = field_measures(jacobian_determinant(grown[None]))
    assert measures["folding"] == 0
    assert measures["jacobian_min"] == pytest.approx(1.1, abs=1e-6)
    assert measures["log_jacobian_sd"] == pytest.approx(0, abs=1e-6)
    half = torch.where(rows < 6, 0.0, -2.0 * (rows - 5.5))
    folded = jacobian_determinant(torch.stack([half, torch.zeros(12, 10)])[None])
    assert field_measures(folded)["folding"] == pytest.approx(100 * 6 / 12, abs=10)


def square(shape: tuple[int, ...], corner: int) -> torch.Tensor:
    label = torch.zeros(1, *shape, dtype=torch.int64)
    label[(0, *[slice(corner, corner + 8)] * len(shape))] = 1
    return label


@pytest.mark.parametrize("shape", [(24, 30), (20, 22, 24)])
def test_equal_labels_overlap_fully_and_shifted_ones_lie_their_shift_apart(shape):
    spacing = (1.5, 1.5, 1.5)[: len(shape)]
    same = label_measures(square(shape, 6), square(shape, 6), spacing, "before")
    assert same["dice_before"] == 1
    assert same["contour_distance_before"] == same["hd95_before"] == 0
    shifted = square(shape, 6).roll(2, dims=1)
    measures = label_measures(square(shape, 6), shifted, spacing, "after")
    assert measures["dice_after"] == pytest.approx(0.75)
    assert measures["hd95_after"] == pytest.approx(2 * 1.5)
    assert measures["contour_distance_after"] == pytest.approx(1.5 * measures["contour_distance_after_voxel"])


def test_a_label_that_is_lost_counts_as_far_away_and_never_as_a_gain():
    fixed = square((24, 30), 6)
    fixed[0, :3, :3] = 2
    kept = label_measures(fixed, fixed, (2.0, 1.0), "after")
    lost = label_measures(fixed, square((24, 30), 6), (2.0, 1.0), "after")
    assert lost["dice_after"] == pytest.approx(0.5)
    assert lost["contour_distance_after"] == pytest.approx(0.5 * np.hypot(48, 30))
    assert lost["contour_distance_after_voxel"] == pytest.approx(0.5 * np.hypot(24, 30))
    assert kept["contour_distance_after"] == 0
    assert label_measures(fixed, 0 * fixed, (1.0, 1.0), "after")["dice_after"] == 0
    assert label_measures(0 * fixed, fixed, (1.0, 1.0), "after") == {}


def test_one_kind_of_error_decides_for_all_cases():
    nan = float("nan")
    metric = CaseErrorMetric()
    metric([torch.tensor([nan, 4.0, 0.2]), torch.tensor([nan, 2.0, 0.1])])
    assert metric.aggregate().item() == 3.0
    metric([torch.tensor([1.5, 9.0, 0.9])])  # one case with landmarks, and landmarks decide
    assert metric.aggregate().item() == 1.5
    metric.reset()
    metric([torch.tensor([nan, nan, 0.2])])
    assert metric.aggregate().item() == pytest.approx(0.2)


def test_each_statistic_of_a_case_is_the_one_of_its_landmarks():
    errors = torch.tensor([1.0, 2.0, 3.0, 10.0])
    carried = torch.stack([errors, torch.zeros(4)], 1)
    padded = torch.cat([carried, torch.full((2, 2), float("nan"))])
    for statistic, expected in (("mean", 4.0), ("median", 2.5), ("p95", errors.quantile(0.95).item()), ("max", 10.0)):
        metric = TargetRegistrationErrorMetric(statistic, spacing=(0.5, 7.0))
        metric(padded[None], 0 * padded[None])
        assert metric.aggregate().item() == pytest.approx(0.5 * expected)
    with pytest.raises(ValueError, match="mean, median, p95, max"):
        TargetRegistrationErrorMetric("mode")


def test_the_metric_works_in_a_monai_evaluator():
    from monai.engines import SupervisedEvaluator
    from monai.handlers import IgniteMetricHandler, from_engine

    def after(engine, batch):
        cases = [{"carried": torch.full((n, 2), 3.0), "reference": torch.full((n, 2), 3.0 - n)} for n in (1, 2)]
        engine.state.batch, engine.state.output = cases, cases
        return cases

    handler = IgniteMetricHandler(
        metric_fn=TargetRegistrationErrorMetric(), output_transform=from_engine(["carried", "reference"])
    )
    evaluator = SupervisedEvaluator(
        "cpu", [0], torch.nn.Identity(), key_val_metric={"mean_tre": handler}, iteration_update=after, decollate=False
    )
    evaluator.run()
    assert evaluator.state.metrics["mean_tre"] == pytest.approx(1.5 * 2**0.5)


def test_the_summary_keeps_cases_and_pooled_landmarks_apart():
    def case(name: str, errors: list[float]) -> dict:
        rows = [{"before_mm": 4.0, "after_mm": e, "before_voxel": 2.0, "after_voxel": e / 2} for e in errors]
        mean = sum(errors) / len(errors)
        return {"id": name, "measures": {"tre_mean_after": {"value": mean, "unit": "mm"}}, "landmarks": rows}

    summary = summarise([case("a", [1.0]), case("b", [3.0, 5.0, 4.0])])
    assert summary["measures"]["tre_mean_after"]["mean"] == pytest.approx(2.5)
    assert summary["landmarks"]["measures"]["tre_mean_after"]["value"] == pytest.approx(3.25)
    assert summary["landmarks"]["count"] == 4
    assert summary["measures"]["tre_mean_after"]["unit"] == "mm"
