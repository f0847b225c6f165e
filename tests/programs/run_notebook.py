"""Run a file as a notebook in a kernel, a cell from each `# %%` on, and print the outputs of each cell.

An output in HTML is printed as HTML, because that is what a notebook shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import preamble
from notebooks import run_cells

preamble.install()
_, *cells = Path(sys.argv[1]).read_text().split("# %%\n")
for number, cell in enumerate(run_cells([cell.strip() for cell in cells]).cells):
    for output in cell.outputs:
        data = output.get("data", {})
        print(f"[{number}]", (output.get("text") or data.get("text/html") or data.get("text/plain")).strip())
