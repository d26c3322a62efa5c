"""Make the figures of docs/methods anew: run the python blocks of each page, keep the SVG files they write.

python tools/figures.py [NAME ...]
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path

PAGES = Path(__file__).parents[1] / "docs" / "methods"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def main(names: list[str]) -> None:
    """One page after the other, each in an empty folder."""
    figures = PAGES / "figures"
    for page in sorted(PAGES.glob("*.md")):
        if names and page.stem not in names:
            continue
        with tempfile.TemporaryDirectory(dir=PAGES) as folder:
            os.chdir(folder)
            code = "\n".join(BLOCK.findall(page.read_text("utf-8")))
            exec(compile(code, page.name, "exec"), {"__name__": "page"})
            for file in sorted(Path(folder).glob("*.svg")):
                file.replace(figures / file.name)
                print(figures / file.name)
            os.chdir(PAGES)


if __name__ == "__main__":
    main(sys.argv[1:])
