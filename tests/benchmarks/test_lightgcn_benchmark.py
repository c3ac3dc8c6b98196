import numpy as np
import torch
from scipy.sparse import csr_array

from benchmarks import lightgcn


def test_both_sides_do_the_same_job() -> None:
    threads = torch.get_num_threads()
    train = csr_array((np.random.default_rng(0).random((60, 50)) < 0.1).astype(np.float32))
    product = lightgcn._product_row(train, None, 1)
    assert product.quality["largest_difference"] < 1e-5
    steps = lightgcn._step_row(train, None, 1, 0.1)
    assert steps.quality["largest_relative_loss_difference"] < 1e-5
    assert steps.ratio > 0 and product.ratio > 0
    torch.set_num_threads(threads)
