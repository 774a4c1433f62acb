import csv
from dataclasses import replace

import numpy as np
import pytest

from monai_jsm.benchmark.results import CaseResult, whole_file
from monai_jsm.benchmark.tables import Head, write_tables

ROWS = [("identity", "No registration"), ("demons", "Demons | 3 levels"), ("ours", "Ours")]
HEAD = Head(
    suite="Known motion",
    split="testing; no method saw it",
    unit="voxel",
    prealignment="none for any row but affine",
    training="Learned rows were trained on cine MR.",
    cases_in_split=8,
    command="monai-jsm benchmark --suite known-field",
)
MADE = {"version": "1.2.3", "commit": "abc1234", "threads": 2, "jobs": 1}
FACTOR = {"identity": 8.0, "demons": 2.0, "ours": 1.0}


def landmark(label, before, after, distance=None, trust=0.5):
    return {
        "label": label,
        "before_voxel": before,
        "after_voxel": after,
        "before_mm": 2 * before,
        "after_mm": 2 * after,
        "outlier_distance": distance,
        "trust": trust,
    }


def made(rows=ROWS, cases=8, outliers=True):
    """Rows whose errors are multiples of each other; every second case has an outlier."""
    results = []
    for name, _ in rows:
        for i in range(cases):
            errors = [FACTOR[name] * (1 + 0.1 * i), FACTOR[name] * (2 + 0.1 * i), FACTOR[name] * 3]
            distances = [4.0, 8.0, 20.0] if outliers and i % 2 else [None] * 3
            landmarks = [landmark(f"p{k}", 8.0, e, d) for k, (e, d) in enumerate(zip(errors, distances, strict=True))]
            measures = {
                "tre_mean_after_voxel": float(np.mean(errors)),
                "tre_mean_after": 2 * float(np.mean(errors)),
                "image_error": 0.01 * FACTOR[name],
                "folding": 0.0,
                "log_jacobian_sd": 0.0 if name == "identity" else 0.1 * FACTOR[name],
            }
            results.append(CaseResult(name, f"case_{i}", measures, landmarks, seconds=0.1 * FACTOR[name]))
    return results


def table(text, heading):
    """The table below a heading: header, then lines, as lists of cells."""
    block = text.split(heading, 1)[1].split("\n| ", 1)[1].split("\n\n")[0]
    lines = [line.strip("| ").split(" | ") for line in ("| " + block).splitlines()]
    return lines[0], lines[2:]


def column(text, name, heading="## Results"):
    header, lines = table(text, heading)
    return [line[header.index(name)] for line in lines]


def test_the_main_table_has_the_figures_of_every_row(tmp_path):
    text = write_tables(tmp_path, made(), ROWS, HEAD)
    assert column(text, "name") == ["identity", "demons", "ours"]
    errors = np.array([[1 + 0.1 * i, 2 + 0.1 * i, 3.0] for i in range(8)])
    means = errors.mean(1)
    assert column(text, "mean TRE (voxel)")[2] == f"**{means.mean():.2f} ± {means.std(ddof=1):.2f}**"
    assert column(text, "median (voxel)")[2] == f"**{np.median(errors):.2f}**"
    assert column(text, "p95 (voxel)")[1] == f"{np.quantile(2 * errors, 0.95):.2f}"
    assert column(text, "no outlier (voxel)")[1] == f"{2 * means[::2].mean():.2f}"
    assert column(text, "outlier (voxel)")[1] == f"{2 * means[1::2].mean():.2f}"
    assert column(text, "near it (voxel)")[0] == f"{8 * errors[1::2, :2].mean():.1f}"
    assert column(text, "improved (%)") == ["0", "**100**", "**100**"]
    assert column(text, "seconds") == ["0.800", "0.200", "**0.100**"]


def test_only_columns_that_the_suite_has_are_shown(tmp_path):
    text = write_tables(tmp_path, made(outliers=False), ROWS, HEAD)
    header, _ = table(text, "## Results")
    assert not {"Dice", "HD95 (mm)", "near it (voxel)", "outlier (voxel)", "memory (MiB)", "cases done"} & set(header)
    labels = [replace(r, measures={"dice_after": 0.9, "hd95_after": 3.0}, landmarks=[]) for r in made()]
    header, _ = table(write_tables(tmp_path, labels, ROWS, HEAD), "## Results")
    assert "Dice" in header
    assert "HD95 (mm)" in header
    assert not any("TRE" in name for name in header)


def test_a_row_that_deforms_nothing_is_not_the_best_in_time_or_smoothness(tmp_path):
    results = [replace(r, seconds=0.0) if r.method == "identity" else r for r in made()]
    text = write_tables(tmp_path, results, ROWS, HEAD)
    assert column(text, "seconds") == ["0", "0.200", "**0.100**"]
    assert column(text, "folding (%)") == ["0", "**0**", "**0**"]


def test_a_row_that_failed_on_a_case_says_so_and_is_never_the_best(tmp_path):
    results = [
        CaseResult("ours", r.case, failure="ran out | of memory.") if (r.method, r.case) == ("ours", "case_7") else r
        for r in made()
    ]
    text = write_tables(tmp_path, results, ROWS, HEAD)
    assert column(text, "cases done") == ["8 of 8", "8 of 8", "7 of 8"]
    assert "**" not in column(text, "mean TRE (voxel)")[2]
    assert "**" in column(text, "mean TRE (voxel)")[1]
    assert "- Ours failed on 1 of 8 cases: ran out \\| of memory." in text
    assert column(text, "cases", "### By mean TRE (voxel)") == ["7 of 8", "7 of 8"]


def test_a_row_that_could_not_run_stays_in_the_table_with_its_reason(tmp_path):
    reason = "itk-elastix: is not installed; pip install itk-elastix"
    results = made() + [CaseResult("elastix", f"case_{i}", failure=reason) for i in range(8)]
    text = write_tables(tmp_path, results, [*ROWS, ("elastix", "elastix"), ("syn", "SyN")], HEAD)
    assert column(text, "cases done")[3:] == ["0 of 8", "0 of 8"]
    assert set(table(text, "## Results")[1][3][3:]) == {"-"}
    assert f"- elastix could not run: {reason}." in text
    assert "- SyN could not run: was not run." in text
    assert "elastix" not in column(text, "method", "### By mean TRE (voxel)")


def test_losses_stand_first_and_are_called_so(tmp_path):
    text = write_tables(tmp_path, made(), ROWS, HEAD, reference="demons")
    assert column(text, "verdict", "### By mean TRE (voxel)") == ["**demons is worse**", "demons is better"]
    assert column(text, "method", "### By mean TRE (voxel)") == ["Ours", "No registration"]
    assert column(text, "demons worse", "### By mean TRE (voxel)") == ["8", "0"]
    near = "### By mean TRE within 8 voxels"
    assert column(text, "verdict", near) == ["too few pairs", "too few pairs"]
    assert "Averaged in each case first, then over cases" in text.split(near)[1]
    assert "Holm's correction for the rows tested, each measure by itself" in text


def test_without_the_reference_nothing_is_compared_and_the_text_says_so(tmp_path):
    text = write_tables(tmp_path, made(ROWS[:2]), ROWS[:2], HEAD)
    assert "No row is compared with another, since the reference, ours, is not among them." in text


def test_the_head_says_what_was_measured_on_what_by_what(tmp_path):
    results = [replace(result, made=MADE) for result in made()]
    command = "monai-jsm benchmark --output 'two  spaces\nand a line'"
    text = write_tables(tmp_path, results, ROWS, replace(HEAD, command=command))
    assert text.startswith(
        "# Known motion\n\n- Cases: 8, with 24 landmarks\n- Split: testing; no method saw it\n"
        "- Training: Learned rows were trained on cine MR.\n- Unit of distances: voxel, unless"
    )
    assert "\n- Pre-alignment: none for any row but affine\n" in text
    assert "\n- Made by: monai_jsm 1.2.3, commit abc1234; 2 threads a process, 1 process\n" in text
    assert "\n    monai-jsm benchmark --output 'two  spaces and a line'\n" in text
    assert (tmp_path / "benchmark.md").read_text(encoding="utf-8") == text


def test_the_head_says_that_only_the_first_cases_were_run(tmp_path):
    text = write_tables(tmp_path, made(cases=3), ROWS, replace(HEAD, cases_in_split=24, training="", command=""))
    assert "- Cases: the first 3 of 24, with 9 landmarks\n" in text
    assert "- Rows: 3\n\n## Results\n" in text
    assert "Training" not in text
    assert "Made by" not in text
    assert "Subjects" not in text


def test_results_that_were_made_differently_say_so_in_the_head(tmp_path):
    busy = {"version": "1.2.3", "commit": "", "threads": 1, "jobs": 4}
    results = [replace(r, made=busy if r.method == "ours" else MADE) for r in made()]
    text = write_tables(tmp_path, results, ROWS, HEAD)
    assert (
        "- Made by: monai_jsm 1.2.3, mixed: commit unknown and abc1234; mixed: 1 and 2 threads a process, "
        "mixed: 1 and 4 processes at the same time, which makes each slower; seconds of different rows do not compare\n"
    ) in text
    text = write_tables(tmp_path, [replace(r, made=busy) for r in made()], ROWS, HEAD)
    assert "monai_jsm 1.2.3; 1 thread a process, 4 processes at the same time, which makes each slower\n" in text


@pytest.mark.parametrize(
    ("subjects", "told"),
    [
        (
            "aabbccdd",
            "the 8 pairs are of 4 subjects; intervals are over subjects, and not given below 6 of them; p takes",
        ),
        (
            "aabbcdef",
            "the 8 pairs are of 6 subjects; intervals are over subjects; p takes pairs as independent, so that",
        ),
        ("abcdefgh", "the 8 pairs are of 8 subjects, one each\n"),
        ("aabb    ", "4 of the 8 pairs are of 2 subjects, each of the others counts as of a subject of its own; inter"),
    ],
)
def test_the_head_says_of_how_many_subjects_the_pairs_are(tmp_path, subjects, told):
    results = [replace(r, subject=subjects[int(r.case[5:])].strip()) for r in made()]
    text = write_tables(tmp_path, results, ROWS, HEAD)
    assert f"\n- Subjects: {told}" in text
    assert "by resampling the subjects." in text or column(text, "95 % interval", "### By mean TRE (voxel)")[0] == "-"
    assert [row["subject"] for row in read(tmp_path / "cases.csv")][:8] == [one.strip() for one in subjects]


def test_each_warning_is_told_once_with_its_rows_and_cases(tmp_path):
    results = [
        replace(r, warnings=["The images hardly overlap."] + (["Stopped early."] if r.method == "ours" else []))
        if r.case in ("case_2", "case_5")
        else r
        for r in made()
    ]
    text = write_tables(tmp_path, results, ROWS, HEAD)
    assert (
        "## Warnings\n\n- The images hardly overlap. (2 of 8 cases; all rows)\n"
        "- Stopped early. (2 of 8 cases; ours)\n\n"
    ) in text
    assert text.index("## Results") < text.index("## Warnings") < text.index("## Every row")
    assert "## Warnings" not in write_tables(tmp_path, made(), ROWS, HEAD)


def test_a_row_that_is_ours_to_the_last_bit_is_told_and_not_compared(tmp_path):
    rows = [*ROWS, ("ours-both-io", "Ours, both")]
    results = made() + [replace(r, method="ours-both-io") for r in made() if r.method == "ours"]
    text = write_tables(tmp_path, results, rows, HEAD)
    assert "- Ours, both (ours-both-io): every result is that of ours to the last bit; it is not compared." in text
    assert column(text, "method", "### By mean TRE (voxel)") == ["Demons \\| 3 levels", "No registration"]
    assert column(text, "p (Holm)", "### By mean TRE (voxel)") == [f"{2 * 2 / 2**8:.2g}"] * 2
    statistics = {row["method"]: row for row in read(tmp_path / "statistics.csv")}
    assert statistics["ours-both-io"]["verdict"] == "identical to ours"


def test_where_nothing_can_be_compared_there_is_no_such_section(tmp_path):
    assert "Every row against" not in write_tables(tmp_path, made(ROWS[2:]), ROWS[2:], HEAD)
    assert "Every row against" not in write_tables(tmp_path, made(ROWS[:2]), ROWS, HEAD)
    assert "Every row against" not in write_tables(tmp_path, [], ROWS, HEAD)


def test_landmarks_of_other_results_go_and_no_file_is_half_written(tmp_path):
    write_tables(tmp_path, made(), ROWS, HEAD)
    write_tables(tmp_path, [replace(r, landmarks=[]) for r in made()], ROWS, HEAD)
    names = ["benchmark.md", "cases.csv", "statistics.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    before = (tmp_path / "cases.csv").read_bytes()

    def fail_half_way():
        with whole_file(tmp_path / "cases.csv") as building:
            building.write_text("half")
            raise KeyError("half way")

    with pytest.raises(KeyError, match="half way"):
        fail_half_way()
    assert (tmp_path / "cases.csv").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_the_same_results_give_the_same_files(tmp_path):
    for name in ("first", "second"):
        write_tables(tmp_path / name, made(), ROWS, HEAD)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["benchmark.md", "cases.csv", "landmarks.csv", "statistics.csv"]
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_text_of_files_cannot_break_the_table(tmp_path):
    rows = [("ours", "a|b\n| c <script> `x` \\| *d*")]
    text = write_tables(tmp_path, made(ROWS[2:]), rows, HEAD)
    assert "| a\\|b \\| c \\<script> \\`x\\` \\\\\\| \\*d\\* | ours |" in text
    rows = [("ours", "- &amp; ~~x~~ $y$ @z # HTTPS://a.org www.b.org")]
    text = write_tables(tmp_path, made(ROWS[2:]), rows, HEAD)
    assert r"| \- \&amp; \~\~x\~\~ \$y\$ \@z \# HTTPS\://a.org www\.b.org | ours |" in text
    assert "\n- 1\\. could not run" in write_tables(tmp_path, made(ROWS[2:]), [("none", "1."), *ROWS], HEAD)


def read(path):
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_csv_files_hold_every_landmark_case_and_comparison(tmp_path):
    results = [replace(r, failure="diverged", measures={}, landmarks=[]) if r.case == "case_0" else r for r in made()]
    write_tables(tmp_path, results, ROWS, HEAD)
    landmarks = read(tmp_path / "landmarks.csv")
    assert len(landmarks) == 3 * 7 * 3
    assert landmarks[0] == {
        "method": "identity",
        "case": "case_1",
        "label": "p0",
        "before_voxel": "8.0",
        "after_voxel": "8.8",
        "before_mm": "16.0",
        "after_mm": "17.6",
        "outlier_distance": "4.0",
        "trust": "0.5",
    }
    assert landmarks[3]["outlier_distance"] == ""
    cases = read(tmp_path / "cases.csv")
    assert len(cases) == 24
    assert (cases[0]["failure"], cases[0]["folding"], cases[0]["peak_memory"]) == ("diverged", "", "")
    assert float(cases[-1]["tre_mean_after"]) == pytest.approx(2 * (1.7 + 2.7 + 3) / 3)
    statistics = read(tmp_path / "statistics.csv")
    first = {row["method"]: row for row in statistics if row["measure"] == "tre_mean_after_voxel"}
    assert first["demons"]["verdict"] == "ours is better"
    assert float(first["demons"]["difference_low"]) < float(first["demons"]["difference"])
    assert float(first["demons"]["p_holm"]) == pytest.approx(2 * 2 / 2**7)  # the smallest of seven pairs, two rows
    assert (first["ours"]["cases"], first["ours"]["reference"]) == ("7", "")


def test_nothing_measured_is_still_a_table(tmp_path):
    text = write_tables(tmp_path, [], ROWS, HEAD)
    assert column(text, "name") == ["identity", "demons", "ours"]
    assert "- Ours could not run: there are no cases." in text
