"""`RentGPU` in a notebook, where a loop runs already: a real kernel, driven as Jupyter drives it."""

from pathlib import Path

from programs import Program

from netmind_rentgpu.emulator import Emulator

NOTEBOOK = """
import nbformat
from nbclient import NotebookClient

CELLS = [
    "import asyncio\\nfrom netmind_rentgpu import AsyncRentGPU, NotFoundError, RentGPU\\ngpu = RentGPU()",
    "asyncio.get_running_loop().is_running(), len(gpu.machines.list())",
    "[image.name for image in gpu.images.list(page_size=2)][0]",
    "try:\\n    gpu.containers.get(1)\\nexcept NotFoundError as error:\\n    print(error.status)",
    "async with AsyncRentGPU() as other:\\n    print(len(await other.machines.list()), len(gpu.machines.list()))",
    "gpu.close()",
]
notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
for cell in notebook.cells:
    for output in cell.outputs:
        print(output.get("text", output.get("data", {}).get("text/plain")).strip())
"""


async def test_it_works_in_a_notebook(tmp_path: Path) -> None:
    with Emulator(seed=7) as emulator:
        folders = {name: str(tmp_path) for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR")}
        program = Program(NOTEBOOK, {**folders, "NETMIND_API_KEY": emulator.token})
        # What Jupyter's own libraries warn of is theirs.
        await program.run(emulator.url, warnings=())
        assert program.status == 0, program.errors
        assert program.output == "(True, 60)\n'PyTorch 2.4'\n404\n60 60\n"
