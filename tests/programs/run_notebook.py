"""Run a file as a notebook in a kernel, a cell from each `# %%` on, and print the outputs of each cell.

An output in HTML is printed as HTML, because that is what a notebook shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import preamble
from nbclient import NotebookClient

preamble.install()
_, *cells = Path(sys.argv[1]).read_text().split("# %%\n")
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
for number, cell in enumerate(notebook.cells):
    for output in cell.outputs:
        data = output.get("data", {})
        print(f"[{number}]", (output.get("text") or data.get("text/html") or data.get("text/plain")).strip())
