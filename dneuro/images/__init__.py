"""Pictures: where they lie, what identifies them, how they become a network's input.

Knows Pillow, NumPy and Zarr, never torch::

    open_source(spec) ─▶ ImageSource.manifest     which images, in which order, which labels
                         ImageSource.load(i)  ─▶  picture  ─▶  view  ─▶  to_input

One file per kind of source: `digits`, `folder`, `files`, `imagenet_val`, `arrays`, `mnist`, `cifar10`. Image files
may lie in a folder (`local`), a tar (`tar`) or below a URL (`remote`); `storage` says what these have in common.
Labels come from folder names, a table (`table`, `labels`) or ImageNet's own lists (`imagenet`, `devkit`).
"""
