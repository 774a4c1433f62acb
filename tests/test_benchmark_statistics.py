import itertools
import math
from dataclasses import replace

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
    identical_rows,
    near_outlier,
    subjects_of,
    summarise_row,
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


def test_the_bootstrap_draws_subjects_with_all_their_cases():
    means, cases = [1.0, 2.0, 4.0, 3.0, 8.0, 5.0, 6.0], [1, 3, 2, 1, 4, 2, 1]
    values = [mean for mean, count in zip(means, cases, strict=True) for _ in range(count)]
    subjects = [f"subject_{i}" for i, count in enumerate(cases) for _ in range(count)]
    sums = [mean * count for mean, count in zip(means, cases, strict=True)]
    assert bootstrap_interval(values, subjects=subjects) == bootstrap_interval(sums, cases)
    order = np.random.default_rng(0).permutation(len(values))  # a subject's cases need not stand together
    low, high = bootstrap_interval([values[i] for i in order], subjects=[subjects[i] for i in order])
    assert low == pytest.approx(bootstrap_interval(sums, cases)[0], abs=0.2)
    assert high == pytest.approx(bootstrap_interval(sums, cases)[1], abs=0.2)


def test_an_interval_over_subjects_is_wider_by_the_root_of_their_cases_where_these_are_equal():
    values = np.random.default_rng(3).normal(5.0, 2.0, 100)
    naive, honest = (
        bootstrap_interval(list(np.repeat(values, 4)), subjects=subjects)
        for subjects in (None, [str(i) for i in np.repeat(np.arange(100), 4)])
    )
    assert np.ptp(honest) / np.ptp(naive) == pytest.approx(2.0, rel=0.06)  # 4000 resamples each


def test_a_case_without_subject_is_its_own():
    values = [1.0, 2.0, 4.0, 3.0, 8.0, 5.0, 6.0]
    assert bootstrap_interval(values, subjects=[""] * 7) == bootstrap_interval(values)
    assert not math.isnan(bootstrap_interval(values, subjects=["a", "a", *[""] * 5])[0])  # six
    assert math.isnan(bootstrap_interval(values, subjects=["a", "a", "a", *[""] * 4])[0])  # five


def test_intervals_of_means_and_of_differences_are_over_subjects_and_p_over_pairs():
    generator = np.random.default_rng(0)
    ours = np.repeat(generator.gamma(2, 1, 8), 4) + 0.01 * generator.random(32)
    demons = ours + np.repeat(generator.normal(0.5, 1, 8), 4) + 0.01 * generator.random(32)
    pairs = results_of({"demons": list(demons), "ours": list(ours)})
    known = [replace(result, subject=f"s{int(result.case[5:]) // 4}") for result in pairs]
    measure = headline_measures(pairs, "voxel")[0]
    alone, together = (compare(results, ROWS[1:], measure)[0] for results in (pairs, known))
    assert (together.p, together.difference) == (alone.p, alone.difference)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    sums = (demons - ours).reshape(8, 4).sum(1)
    assert (together.low, together.high) == pytest.approx(bootstrap_interval(list(sums), [4] * 8))
    summary = summarise_row(known, "ours", measure)
    assert (summary.low, summary.high) == pytest.approx(bootstrap_interval(list(ours.reshape(8, 4).sum(1)), [4] * 8))
    assert summary.cases == 32


def test_the_subject_of_a_case_is_known_where_any_row_tells_it():
    results = [CaseResult("ours", "a", failure="no"), CaseResult("demons", "a", subject="s"), CaseResult("ours", "b")]
    assert subjects_of(results) == {"a": "s"}


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


@pytest.mark.parametrize(
    "differences",
    [
        [3, 3, 2, 1, 3, 1, -1],
        [1, 1, 1, 1, 1, -1],
        [1, -2, 3, -4, 5, -6, 7],
        [2, 2, -2, -2, 5, 5, 5, -1, 0],
        [4, -4, 4, -4, 4, -4, math.inf, math.inf, -0.5, 2, 2],
    ],
)
def test_the_exact_test_respects_ties_as_counting_all_signs_does(differences):
    found = compared({"demons": [float(d) for d in differences], "ours": [0.0] * len(differences)})["demons"]
    differ = np.array([d for d in differences if d])
    ranks = stats.rankdata(abs(differ))
    signed = [np.dot(signs, ranks) for signs in itertools.product((-1, 1), repeat=len(differ))]
    assert found.p == np.mean(np.abs(signed) >= abs(np.dot(np.sign(differ), ranks)))


def test_the_exact_test_without_ties_is_scipys_up_to_fifty_pairs():
    differences = np.random.default_rng(2).normal(0.3, 1, 50)
    found = compared({"demons": list(differences), "ours": [0.0] * 50})["demons"]
    assert found.p == pytest.approx(stats.wilcoxon(differences, method="exact").pvalue, rel=1e-12)


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
    assert compared({"demons": [1.5, *errors[1:]], "ours": errors})["demons"].equal == 5


def test_a_row_that_is_the_reference_to_the_last_bit_is_not_tested_and_does_not_count():
    ours = [1.0 + 0.1 * i for i in range(8)]
    errors = {"identity": [value + 1 + 0.1 * value for value in ours], "demons": [*ours[:-1], None], "ours": ours}
    results = results_of(errors)
    assert identical_rows(results) == ["demons"]  # the failed case says nothing
    found = compared(errors)
    assert (found["demons"].verdict, found["demons"].equal) == ("identical to ours", 7)
    assert math.isnan(found["demons"].p)
    assert found["identity"].p_holm == found["identity"].p == 2 / 2**8


def test_rows_are_identical_only_if_every_measure_and_landmark_is():
    row = {"label": "p", "after_mm": 1.0, "trust": None}
    ours = CaseResult("ours", "a", {"dice_after": 0.9, "hd95_after": math.nan}, [row], seconds=1.0)
    same = replace(ours, method="demons", measures={"hd95_after": math.nan, "dice_after": 0.9}, seconds=2.0)
    assert identical_rows([ours, same]) == ["demons"]
    assert identical_rows([ours, replace(same, landmarks=[row | {"after_mm": 1.0 + 1e-15}])]) == []
    assert identical_rows([ours, replace(same, measures={"dice_after": 0.9})]) == []
    assert identical_rows([ours, replace(same, failure="diverged")]) == []
    assert identical_rows([replace(result, measures={}, landmarks=[]) for result in (ours, same)]) == []


def test_the_verdict_is_in_words_of_what_was_computed():
    sizes = np.arange(1, 41)  # 19 small gains of the reference are outranked by 21 large losses, yet its mean is better
    differences = np.where(sizes <= 19, 0.001 * sizes, -0.1 - 0.001 * sizes)
    differences[0] = 500.0
    ours = np.full(40, 1000.0)
    found = compared({"demons": list(ours + differences), "ours": list(ours)})["demons"]
    assert (found.better, found.worse) == (19, 21)
    assert found.verdict == "mixed: ours is worse by ranks, better by the mean"


def test_ranks_and_mean_that_do_not_agree_are_mixed():
    ours = [1.0 + 0.01 * i for i in range(18)]
    demons = [value + 0.1 for value in ours]
    found = compared({"demons": [*demons[:-1], 0.0], "ours": [*ours[:-1], 50.0]})["demons"]
    assert found.verdict == "mixed: ours is better by ranks, worse by the mean"


@pytest.mark.parametrize(("last", "word"), [(-17.0, "equal"), (-math.inf, "worse")])
def test_a_mean_of_nothing_is_neither_better_nor_worse(last, word):
    found = compared({"demons": [*[1.0] * 17, last], "ours": [0.0] * 18})["demons"]
    assert found.verdict == f"mixed: ours is better by ranks, {word} by the mean"


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
