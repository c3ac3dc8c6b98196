"""The library: models, losses, samplers, trainer, exact top-k and metrics. Tensors in, tensors out."""
