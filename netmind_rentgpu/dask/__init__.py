"""A Dask cluster on rented containers."""
