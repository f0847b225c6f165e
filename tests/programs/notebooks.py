"""Runs of notebooks in a kernel."""

from __future__ import annotations

import tempfile
from pathlib import Path

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient


def run_cells(cells: list[str]) -> nbformat.NotebookNode:
    """Run cells in a kernel as Jupyter starts it, and return the notebook with their outputs.

    The kernel listens on sockets of the file system, because another process may take a port that was free a moment before.
    """
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    with tempfile.TemporaryDirectory() as folder:
        manager = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=str(Path(folder) / "kernel"))
        NotebookClient(notebook, km=manager, timeout=60, kernel_name="python3").execute()
    return notebook
