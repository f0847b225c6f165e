"""`RentGPU` in a notebook, where an event loop runs already: a real kernel, started as Jupyter starts it."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import Program

from netmind_rentgpu.emulator import Emulator

pytestmark = pytest.mark.slow


async def test_synchronous_client_works_in_the_cells_of_a_notebook(tmp_path: Path) -> None:
    with Emulator(seed=7) as emulator:
        folders = {name: str(tmp_path) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
        program = Program(file="notebook_kernel.py", environment={**folders, "NETMIND_API_KEY": emulator.token})
        # Warnings are no errors here, because Jupyter's own libraries warn.
        await program.run(emulator.url, warnings=())
        assert program.status == 0, program.errors
        assert program.output == "(True, 60)\n'PyTorch 2.4'\n404\n60 60\n"
