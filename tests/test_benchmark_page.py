import runpy
from pathlib import Path

import pytest

from monai_jsm.benchmark.methods import METHODS
from monai_jsm.benchmark.suites import SUITES

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def fill():
    return runpy.run_path(str(DOCS / "fill_benchmark.py"))["fill"]


def test_the_page_takes_the_newest_tables_and_plots_and_keeps_its_words(fill, tmp_path):
    marks = "<!-- cine -->\nold\n<!-- end of cine -->\n\n<!-- lung -->\nkept\n<!-- end of lung -->\nmore\n"
    page = "# Page\n\n![x](images/benchmark/cine-time.png)\n\n" + marks
    (tmp_path / "runs" / "cine").mkdir(parents=True)
    (tmp_path / "runs" / "cine" / "benchmark.md").write_text("# Cine\n\n| a |\n\n## Results\n")
    for plot in ("time", "bars"):
        (tmp_path / "runs" / "cine" / f"{plot}.png").write_bytes(b"picture")
    filled = fill(page, tmp_path / "runs", tmp_path / "images")
    new = "<!-- cine -->\n\n#### Cine\n\n| a |\n\n##### Results\n\n<!-- end of cine -->"
    assert filled == page.replace("<!-- cine -->\nold\n<!-- end of cine -->", new)
    assert fill(filled, tmp_path / "runs", tmp_path / "images") == filled
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["cine-time.png"]


def test_the_page_names_every_method_and_has_a_place_for_every_suite():
    page = (DOCS / "benchmark.md").read_text(encoding="utf-8")
    assert not [name for name in METHODS if f"`{name.removesuffix('-io')}`" not in page]
    assert not [name for name in SUITES if f"<!-- {name} -->\n" not in page or f"<!-- end of {name} -->" not in page]
