"""A Dask cluster on rented machines. Needs the extra `dask`."""

from __future__ import annotations

try:
    from netmind_rentgpu.dask.cluster import RentGPUCluster
except ModuleNotFoundError as error:
    if error.name not in ("asyncssh", "cryptography", "dask", "distributed"):
        raise
    raise ModuleNotFoundError(
        f"a Dask cluster needs {error.name}, which the extra `dask` installs: run pip install '.[dask]' in the folder of"
        " this package's source",
        name=error.name,
    ) from None
from netmind_rentgpu.dask.software import Software

__all__ = ["RentGPUCluster", "Software"]
