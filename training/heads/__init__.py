"""Training of a new flow head for a model whose backbone stays frozen."""
