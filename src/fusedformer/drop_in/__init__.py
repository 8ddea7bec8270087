"""Models of PyTorch, Hugging Face and timm through our kernels, their code unchanged."""
