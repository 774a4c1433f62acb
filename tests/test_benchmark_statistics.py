import math

import numpy as np
import pytest
from scipy import stats

from monai_jsm.benchmark.results import CaseResult
from monai_jsm.benchmark.statistics import (
    TOO_FEW,
    bootstrap_interval,
    case_order,
    compare,
    headline_measures,
    holm,
    near_outlier,
    summarise_values,
    values_of,
)

ROWS = [("identity", "No registration"), ("demons", "Demons"), ("ours", "Ours")]


def results_of(errors, name="tre_mean_after_voxel"):
    """Results of rows: name to a value per case, None where the row failed."""
    return [
        CaseResult(
            method, f"case_{i}", {} if value is None else {name: value}, failure="" if value is not None else "no"
        )
        for method, values in errors.items()
        for i, value in enumerate(values)
    ]


def compared(errors, name="tre_mean_after_voxel", **settings):
    results = results_of(errors, name)
    rows = [row for row in ROWS if row[0] in errors]
    return {c.method: c for c in compare(results, rows, headline_measures(results, "voxel")[0], **settings)}


def test_holm_multiplies_the_smallest_by_the_number_of_tests_and_never_falls_again():
    assert holm([0.01, 0.02, 0.03, 0.005]) == pytest.approx([0.03, 0.04, 0.04, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]


def test_holm_does_not_count_what_was_not_tested():
    corrected = holm([0.01, math.nan, 0.04])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])
    assert corrected[2] == pytest.approx(0.04)


def test_the_bootstrap_interval_of_many_cases_is_that_of_the_normal_distribution():
    values = np.random.default_rng(3).normal(5.0, 2.0, 400)
    low, high = bootstrap_interval(list(values))
    error = values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)  # 4000 resamples
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_the_bootstrap_of_sums_and_counts_holds_the_pooled_mean():
    sums, counts = [3.0, 10.0, 8.0, 1.0, 7.0, 0.0, 6.0], [1, 5, 2, 1, 4, 0, 2]
    low, high = bootstrap_interval(sums, counts)
    assert low < sum(sums) / sum(counts) < high
    assert bootstrap_interval(sums, [1] * 7) == bootstrap_interval(sums)


def test_the_bootstrap_gives_the_same_interval_every_time_and_none_for_five_cases():
    values = [1.0, 2.0, 4.0, 3.0, 8.0, 5.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert all(math.isnan(bound) for bound in bootstrap_interval(values[:5]))


def test_an_infinite_error_makes_the_mean_infinite_and_not_nan():
    summary = summarise_values([1.0, 2.0, math.inf, 1.0, 2.0, 3.0, 1.0])
    assert summary.mean == math.inf
    assert summary.high == math.inf


def test_the_test_is_scipys_and_corrected_over_the_rows():
    generator = np.random.default_rng(0)
    ours = generator.gamma(2, 1, 20)
    errors = {"identity": list(ours + 3 + generator.random(20)), "demons": list(ours + generator.normal(0.5, 1, 20))}
    found = compared({**errors, "ours": list(ours)})
    for name, values in errors.items():
        assert found[name].p == pytest.approx(stats.wilcoxon(values, ours).pvalue)
        assert found[name].difference == pytest.approx(np.mean(values - ours))
        assert found[name].low < found[name].difference < found[name].high
    assert found["identity"].p_holm == pytest.approx(2 * found["identity"].p)
    assert found["identity"].verdict == "ours is better"


def test_a_loss_is_called_a_loss():
    ours = [1.0 + 0.1 * i for i in range(9)]
    found = compared({"demons": [value - 0.5 - 0.01 * i for i, value in enumerate(ours)], "ours": ours})["demons"]
    assert found.verdict == "ours is worse"
    assert (found.better, found.equal, found.worse) == (0, 0, 9)
    assert found.difference < 0


def test_for_overlap_higher_is_better():
    ours = [0.9 - 0.01 * i for i in range(9)]
    found = compared({"demons": [value - 0.1 - 0.001 * value for value in ours], "ours": ours}, "dice_after")["demons"]
    assert found.verdict == "ours is better"
    assert found.better == 9
    assert found.difference == pytest.approx(-0.1, abs=0.001)


def test_cases_that_a_row_failed_on_are_left_out_of_the_pairs_and_counted():
    ours = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    demons = [2.0, None, 4.0, 5.0, 6.0, 7.0, 8.0, None]
    found = compared({"demons": demons, "ours": [*ours[:-1], 8.0]})["demons"]
    assert (found.shared, found.cases) == (6, 8)
    assert found.difference == pytest.approx(1.0)


def test_what_a_failed_case_still_holds_does_not_count():
    result = CaseResult("ours", "a", {"dice_after": 0.5}, failure="diverged")
    measure = headline_measures([CaseResult("ours", "b", {"dice_after": 0.7}), result], "voxel")[0]
    assert values_of([result], "ours", measure) == {}


def test_five_pairs_are_too_few_and_equal_pairs_are_no_difference():
    ours = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    few = compared({"demons": [value + 1 for value in ours[:5]], "ours": ours[:5]})["demons"]
    assert few.verdict == TOO_FEW
    assert math.isnan(few.p_holm)
    same = compared({"demons": [value + 1e-8 for value in ours], "ours": ours})["demons"]
    assert (same.equal, same.p, same.verdict) == (6, 1.0, "no difference shown")


def test_two_rows_lost_on_the_same_case_are_equal_there():
    errors = [1.0, 2.0, 3.0, 4.0, 5.0, math.inf]
    assert compared({"demons": errors, "ours": errors})["demons"].equal == 6


def test_better_in_most_cases_but_worse_on_average_is_mixed():
    ours = [1.0 + 0.01 * i for i in range(18)]
    demons = [value + 0.1 for value in ours]
    found = compared({"demons": [*demons[:-1], 0.0], "ours": [*ours[:-1], 50.0]})["demons"]
    assert found.verdict == "mixed: ours is better in most cases, worse on average"


def test_another_reference_may_be_chosen_and_an_unknown_one_is_refused():
    errors = {"demons": [2.0] * 8, "ours": [1.0] * 8}
    assert compared(errors, reference="demons")["ours"].verdict == "demons is worse"
    with pytest.raises(ValueError, match="reference must be one of the rows"):
        compared(errors, reference="syn")


def test_headline_measures_are_those_that_a_case_has_in_the_unit_of_the_suite():
    both = {"tre_mean_after": 1.0, "tre_mean_after_voxel": 2.0, "dice_after": 0.9, "image_error": 0.1}
    results = [CaseResult("ours", "a", both), CaseResult("ours", "b", {"contour_distance_after": 3.0})]
    assert [m.name for m in headline_measures(results, "mm")] == [
        "tre_mean_after",
        "contour_distance_after",
        "dice_after",
    ]
    assert [m.name for m in headline_measures(results, "voxel")] == ["tre_mean_after_voxel", "dice_after"]
    assert [m.name for m in headline_measures([CaseResult("ours", "a", {"image_error": 0.1})], "mm")] == ["image_error"]
    assert headline_measures([CaseResult("ours", "a", failure="no")], "mm") == []


def test_landmarks_near_an_outlier_are_those_within_eight_voxels():
    rows = [{"after_mm": float(i), "outlier_distance": distance} for i, distance in enumerate([0.0, 8.0, 8.1, None])]
    assert near_outlier(CaseResult("ours", "a", landmarks=rows), "mm") == [0.0, 1.0]


def test_cases_keep_the_order_in_which_they_come():
    assert case_order([CaseResult("a", "z"), CaseResult("a", "b"), CaseResult("c", "z")]) == ["z", "b"]
