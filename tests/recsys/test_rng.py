import numpy as np
import torch

from recsys.rng import generator, torch_generator


def test_the_same_names_give_the_same_stream() -> None:
    assert np.array_equal(generator(3, "a", 1).integers(0, 1 << 60, 50), generator(3, "a", 1).integers(0, 1 << 60, 50))
    assert torch.equal(
        torch.rand(9, generator=torch_generator(3, "a")), torch.rand(9, generator=torch_generator(3, "a"))
    )


def test_seed_names_their_borders_and_types_all_matter() -> None:
    variants = [(0, "ab", "c"), (0, "a", "bc"), (0, "abc"), (1, "ab", "c"), (0, "1"), (0, 1), (0,), (-1,)]
    first = [int(generator(*v).integers(0, 1 << 62)) for v in variants]
    assert len(set(first)) == len(variants)
    assert len({float(torch.rand(1, generator=torch_generator(*v))) for v in variants}) == len(variants)


def test_neighbouring_counters_are_uncorrelated() -> None:
    draws = np.stack([generator(0, "step", i).standard_normal(2000) for i in range(20)])
    correlations = np.corrcoef(draws)[np.triu_indices(20, 1)]
    assert np.abs(correlations).max() < 0.1


def test_the_stream_is_pinned_across_versions() -> None:
    assert generator(0, "pinned").integers(0, 1000, 4).tolist() == PINNED


PINNED = [546, 892, 25, 997]
