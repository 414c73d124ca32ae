"""Every neuron of every layer: pages of a few neurons each, and an index that finds, filters and sorts them."""
