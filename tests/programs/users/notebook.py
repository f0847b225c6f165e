"""The cells of a notebook: each is separated by `# %%`, and the last expression of a cell is shown."""

# ruff: noqa: B018  # a notebook shows the last expression of a cell, and is in no package
# pyright: reportUnusedExpression=false

# %%
from netmind_rentgpu import RentGPU

gpu = RentGPU()
gpu.machines.list(gpu_names="RTX 4090")

# %%
rental = gpu.rent(gpu_name="RTX 4090", image="PyTorch 2.4").open()
rental

# %%
rental.run("nvidia-smi -L; echo careful >&2")

# %%
print(rental.run("echo as a script prints it"))

# %%
[machine.to_dict()["price"] for machine in gpu.machines.list(gpu_names="RTX 4090")]

# %%
gpu.rentals.list()

# %%
rental.close()
gpu.rentals.list()
