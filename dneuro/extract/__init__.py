"""Images in, labelled activations out: the one place where networks, images, kernels and store meet.

`plan` says what is known before, `work` what a worker must know, `pipeline` what happens to a batch, `task` what a
worker does with a unit, `run` what the driver does with all units.
"""
