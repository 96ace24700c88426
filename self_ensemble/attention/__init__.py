"""The method inside a model's layers: segments, masks, positions, fusion, kernels."""
