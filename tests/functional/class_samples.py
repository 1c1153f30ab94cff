"""Features of classes that several test files fit heads to."""

import numpy as np
import torch


def gaussian_classes(n, d, seed=0):
    """Unit Gaussians around random means, ``n[k]`` examples of class k, in random order."""
    generator = np.random.default_rng(seed)
    y = np.repeat(np.arange(len(n)), n)
    x = generator.standard_normal((len(y), d)) + generator.standard_normal((len(n), d))[y]
    order = generator.permutation(len(y))
    return torch.tensor(x[order]), torch.tensor(y[order])
