"""`fusedformer profile`: where time and memory of a model go as its context grows, here or on a GPU modelled."""
