import csv

from monai_jsm.benchmark.speed import _import_cost, speed_suite

HEADER = ["work", "budget", "measured", "within budget"]


def test_the_speed_suite_has_a_row_for_every_budget_and_writes_its_table(tmp_path):
    table = speed_suite(tmp_path / "new" / "speed", repeats=1, grids=[(2, 16, 24)])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("|")]
    assert lines[0] == HEADER
    rows = lines[2:]
    assert [row[1] for row in rows] == ["2 times", "30 times", "1 times", "0.3 s"]
    assert all(work in row[0] for work, row in zip(["block", "memory", "VoxelMorph", "import"], rows, strict=True))
    assert all(row[3] in ("yes", "no", "unknown") for row in rows)
    assert (tmp_path / "new" / "speed" / "speed.md").read_text(encoding="utf-8") == table
    with (tmp_path / "new" / "speed" / "speed.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [HEADER, *rows]


def test_importing_the_package_costs_next_to_nothing_beyond_monai():
    seconds, _ = _import_cost(repeats=3)
    assert seconds < 0.3
