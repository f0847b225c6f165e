"""A Dask cluster on rented containers."""

from netmind_rentgpu.dask.software import Software

__all__ = ["Software"]
