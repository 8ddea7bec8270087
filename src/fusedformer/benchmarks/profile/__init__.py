"""`fusedformer profile`: where time and memory of a model go as its context grows, on this machine or on one modelled."""
