"""The quadratic toolkit: what QuadraLib offers beyond layers, for any PyTorch network."""
