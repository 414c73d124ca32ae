"""Pictures: where they lie, what identifies them, how they become a network's input.

Knows Pillow, NumPy and Zarr, never torch::

    open_source(spec) ─▶ ImageSource.manifest     which images, in which order, which labels
                         ImageSource.read(i)  ─▶  picture  ─▶  view  ─▶  to_input

One file per kind of source: `digits`, `folder`, `arrays`.
"""
