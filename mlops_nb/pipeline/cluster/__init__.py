"""The same steps, executed by the workers of a Dask cluster."""
