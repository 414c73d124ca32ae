"""Networks: their names, layers, weights, and what they compute. The island that knows torch."""
