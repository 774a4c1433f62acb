import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex

from monai_jsm.benchmark.plots import (
    _by_distance,
    _by_trust,
    _styles,
    draw_bars,
    draw_landmarks,
    draw_outliers,
    draw_time,
    draw_trust,
    published_figure,
    write_plots,
)
from monai_jsm.benchmark.results import CaseResult

ROWS = [("identity", "No registration"), ("demons", "Demons"), ("ours-network", "Network"), ("ours", "Ours")]
PLOTS = ["bars.png", "landmarks.png", "outliers.png", "time.png", "trust.png"]


def made(rows=ROWS, cases=12, landmarks=9, outliers=True):
    generator = np.random.default_rng(0)
    results = []
    for place, (name, _) in enumerate(rows):
        for i in range(cases):
            points = [
                {
                    "label": f"p{k}",
                    "before_voxel": 5.0,
                    "after_voxel": (1 + place) * float(generator.random()),
                    "before_mm": 10.0,
                    "after_mm": (1 + place) * float(generator.random()),
                    "outlier_distance": 40 * float(generator.random()) if outliers and i % 2 else None,
                    "trust": float(generator.random()),
                }
                for k in range(landmarks)
            ]
            mean = float(np.mean([point["after_voxel"] for point in points])) if points else math.nan
            measures = {"tre_mean_after_voxel": mean} if points else {"contour_distance_after_voxel": 1.0 + place}
            results.append(CaseResult(name, f"case_{i}", measures, points, seconds=0.1 + place))
    return results


def bars(panel):
    return [container for container in panel.containers if hasattr(container, "patches")]


def test_every_plot_is_written_for_a_suite_that_has_the_data(tmp_path):
    paths = write_plots(tmp_path / "new", made(), ROWS, "voxel")
    assert [path.name for path in paths] == PLOTS
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)


def test_plots_without_data_are_left_out_and_stale_ones_go(tmp_path):
    (tmp_path / "trust.png").write_bytes(b"of other results")
    assert [path.name for path in write_plots(tmp_path, made(landmarks=0), ROWS, "voxel")] == ["bars.png", "time.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bars.png", "time.png"]
    assert write_plots(tmp_path, [], ROWS, "voxel") == []
    assert draw_outliers(made(outliers=False), ROWS, "voxel") is None


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("error", [0.0, math.inf])
def test_errors_of_nothing_and_infinite_ones_are_drawn_or_left_out(tmp_path, error):
    results = made(cases=4)
    results[0].landmarks[0].update(after_voxel=error, after_mm=error, trust=None)
    results[0].measures["tre_mean_after_voxel"] = error
    assert [path.name for path in write_plots(tmp_path, results, ROWS, "voxel")] == PLOTS


def test_bars_are_the_mean_error_of_the_first_ten_cases_with_the_reference_first():
    results = made()
    figure = draw_bars(results, ROWS, "mm")
    groups = bars(figure.axes[0])
    assert [group.get_label() for group in groups] == ["Ours", "No registration", "Demons", "Network"]
    first = [r for r in results if r.method == "ours"][:10]
    heights = [patch.get_height() for patch in groups[0].patches]
    assert heights == pytest.approx([np.mean([row["after_mm"] for row in r.landmarks]) for r in first])
    assert "mm" in figure.axes[0].get_ylabel()


def test_many_rows_stand_in_several_panels_each_with_the_reference():
    rows = [(f"method{i}", f"Method {i}") for i in range(25)] + [("ours", "Ours")]
    figure = draw_bars(made(rows, cases=3), rows, "voxel")
    assert len(figure.axes) == 5
    assert all(bars(panel)[0].get_label() == "Ours" for panel in figure.axes)
    shown = [group.get_label() for panel in figure.axes for group in bars(panel)[1:]]
    assert shown == [title for _, title in rows[:-1]]


def test_a_case_that_a_row_failed_on_is_marked_in_the_bars():
    results = [
        CaseResult(r.method, r.case, failure="no") if (r.method, r.case) == ("demons", "case_3") else r for r in made()
    ]
    panel = draw_bars(results, ROWS, "voxel").axes[0]
    assert [text.get_text() for text in panel.texts].count("x") == 1
    assert [len(group.patches) for group in bars(panel)] == [10, 10, 9, 10]


def test_a_bar_far_above_the_others_is_cut_with_its_value_on_it():
    results = [replace(r, landmarks=r.landmarks[:2]) for r in made()]
    results[0].landmarks[0].update(after_voxel=1000.0)
    panel = draw_bars(results, ROWS, "voxel").axes[0]
    assert panel.get_ylim()[1] < 20
    assert any(float(text.get_text()) > 400 for text in panel.texts if text.get_text() != "x")


def test_landmarks_are_sorted_by_their_median_and_the_best_is_on_top():
    results = made()
    figure = draw_landmarks(results, ROWS, "voxel")
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["Ours", "Network", "Demons", "No registration"]  # from the bottom; made() is worse row by row
    boxes = [patch for container in figure.axes[0].containers for patch in container.patches]
    errors = [row["after_voxel"] for r in results if r.method == "identity" for row in r.landmarks]
    assert [boxes[-1].get_x(), boxes[-1].get_width()] == pytest.approx(
        [np.quantile(errors, 0.25), np.quantile(errors, 0.75) - np.quantile(errors, 0.25)]
    )


def test_errors_are_averaged_by_distance_to_the_outlier():
    distances, errors = [1.0, 2.0, 3.0, 7.0, 100.0], [1.0, 3.0, 5.0, 7.0, 9.0]
    rows = [{"outlier_distance": d, "after_mm": e} for d, e in zip(distances, errors, strict=True)]
    means, whiskers = _by_distance([CaseResult("ours", str(i), landmarks=rows) for i in range(7)], "mm")
    np.testing.assert_allclose(means, [2, 5, 7, np.nan, np.nan, 9])
    np.testing.assert_allclose(whiskers[:, :3], 0)  # every case is the same


def test_whiskers_are_over_subjects_where_these_are_known():
    unknown = made(ROWS[-1:], cases=20)
    alone, few = ([replace(result, subject=f"s{i % count}") for i, result in enumerate(unknown)] for count in (20, 5))
    whiskers = [_by_trust(results, "mm")[1][1] for results in (unknown, alone, few)]
    assert np.isfinite(whiskers[0]).all()
    np.testing.assert_array_equal(whiskers[0], whiskers[1])
    assert np.isnan(whiskers[2]).all()  # there is no interval of five subjects
    assert np.isnan(_by_distance(few, "mm")[1]).all()
    assert np.isfinite(_by_distance(unknown, "mm")[1][:, -2]).all()


def test_trust_is_cut_into_tenths_with_their_error_and_share_below_one_voxel():
    trust = np.random.default_rng(0).permutation(100) / 99
    rows = [{"trust": t, "after_mm": 3 - 2 * t, "after_voxel": 1.5 - t} for t in trust]
    mean, (errors, _), (shares, _) = _by_trust([CaseResult("ours", "a", landmarks=rows)], "mm")
    np.testing.assert_allclose(mean, (np.arange(10) * 10 + 4.5) / 99)
    np.testing.assert_allclose(errors, 3 - 2 * mean)
    np.testing.assert_allclose(shares, [0] * 5 + [100] * 5)


def test_equal_trust_everywhere_is_one_point():
    rows = [{"trust": 1.0, "after_mm": float(i), "after_voxel": float(i)} for i in range(20)]
    mean, (errors, _), (shares, _) = _by_trust([CaseResult("ours", "a", landmarks=rows)], "mm")
    assert (mean.tolist(), errors.tolist(), shares.tolist()) == ([1.0], [9.5], [5.0])


def test_trust_is_drawn_for_our_rows_or_for_those_named():
    def drawn(**choice):
        return draw_trust(made(), ROWS, "voxel", **choice).axes[0].get_legend_handles_labels()[1]

    assert sorted(drawn()) == ["Network", "Ours"]
    assert drawn(names=["demons"]) == ["Demons"]


def test_labels_of_points_at_one_place_do_not_cover_one_another():
    rows = [(f"method{i}", f"A method with a long name, the number {i}") for i in range(20)] + [("ours", "Ours")]
    results = [CaseResult(name, "a", {"dice_after": 0.9}, seconds=1.0 + 0.01 * i) for i, (name, _) in enumerate(rows)]
    figure = draw_time(results, rows, "voxel")
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert len(boxes) == 21
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    assert "1 - Dice" in figure.axes[0].get_ylabel()


def test_the_time_axis_says_what_its_least_value_stands_for():
    instant = [replace(r, seconds=0.0) if r.method == "identity" else r for r in made()]
    panel = draw_time(instant, ROWS, "voxel").axes[0]
    assert (
        panel.get_xlabel()
        == "seconds a pair with its pre-alignment, median (logarithmic; 0.001 stands for all that takes less)"
    )
    assert min(line.get_xdata()[0] for line in panel.lines if len(line.get_xdata()) == 1) == 0.001
    assert draw_time(made(), ROWS, "voxel").axes[0].get_xlabel().endswith("median (logarithmic)")


def test_a_method_looks_the_same_whatever_other_families_ran_beside_it():
    every, few = _styles(ROWS, "ours"), _styles(ROWS[1:], "ours")
    assert all(every[name] == few[name] for name, _ in ROWS[1:])
    assert to_hex(every["ours"].colour) == "#0072b2"
    assert len({(style.colour, style.marker, style.hatch) for style in every.values()}) == len(ROWS)


def test_the_published_figure_has_a_panel_a_suite(tmp_path):
    path = tmp_path / "new" / "published.png"
    assert published_figure(path, {"Digits": made(), "Cine": made(cases=4)}, ROWS) == path
    assert path.read_bytes().startswith(b"\x89PNG")
    assert published_figure(tmp_path / "none.png", {"Digits": made(), "Labels": made(landmarks=0)}, ROWS) is None
    assert not (tmp_path / "none.png").exists()
    assert published_figure(path, {"Digits": made(landmarks=0)}, ROWS) is None
    assert list(path.parent.iterdir()) == []  # the one of other results
