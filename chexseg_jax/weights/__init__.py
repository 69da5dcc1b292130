"""Read and write PyTorch's weights."""
