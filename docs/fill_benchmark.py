"""Put the tables and figures that `make benchmark` made into docs/benchmark.md.

    python docs/fill_benchmark.py runs/benchmark

What stands between `<!-- NAME -->` and `<!-- end of NAME -->` is replaced by NAME/benchmark.md of that folder, its
headings three levels lower; the plots that the page shows go to docs/images/benchmark. The words are written by hand.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent


def fill(page: str, runs: Path, images: Path) -> str:
    """The page with the newest tables of every suite that was run.

    Args:
        page: text with a pair of comments a suite.
        runs: folder with a folder a suite.
        images: where the plots go that the page shows, as ``images/benchmark/SUITE-PLOT.png``.
    """
    images.mkdir(parents=True, exist_ok=True)
    if "/published.png)" in page:
        shutil.copy(runs / "published" / "published.png", images / "published.png")
    for name in re.findall(r"<!-- end of (\S+) -->", page):
        table = runs / name / "benchmark.md"
        if not table.is_file():
            continue
        text = re.sub(r"^#", "####", table.read_text(encoding="utf-8"), flags=re.MULTILINE).strip()
        for plot in re.findall(rf"/{re.escape(name)}-(\w+)\.png\)", page):
            shutil.copy(runs / name / f"{plot}.png", images / f"{name}-{plot}.png")
        parts = re.split(rf"(<!-- {re.escape(name)} -->\n|<!-- end of {re.escape(name)} -->)", page)
        parts[2] = f"\n{text}\n\n"
        page = "".join(parts)
    return page


if __name__ == "__main__":
    place = DOCS / "benchmark.md"
    place.write_text(
        fill(place.read_text(encoding="utf-8"), Path(sys.argv[1]), DOCS / "images" / "benchmark"), encoding="utf-8"
    )
