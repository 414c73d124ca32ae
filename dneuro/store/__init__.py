"""The store: one Zarr v3 hierarchy per network and image set, and the markers beside it that say what is done.

Plain Zarr and xarray: any client opens it without dneuro. Nothing here knows networks or images.
"""

from dneuro.store.opening import Store, open_store

__all__ = ["Store", "open_store"]
