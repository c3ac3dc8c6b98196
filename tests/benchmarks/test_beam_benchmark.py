from __future__ import annotations

import numpy as np
import torch

from benchmarks.beam import job_tensors, peer_name
from recsys.models.tiger import Reading
from tests.recsys.tiger_fixture import tiger


def test_the_peer_gets_every_parameter_once_and_the_tokens_that_we_read() -> None:
    model, users = tiger(reading=Reading(max_items=4)), np.array([8, 0, 2])
    job = job_tensors(model, users)
    names = {peer_name(name) for name, _ in model.transformer.named_parameters()}
    assert set(job) == names | {"tokens", "paths"}
    assert len(names) == len(list(model.transformer.parameters()))
    assert job["tokens"].shape == (3, 1 + 4 * 3)
    assert (job["tokens"] != 0).sum(1).tolist() == [13, 1, 7]
    assert job["tokens"][1, 0] == job["tokens"][2, 0] == len(model.transformer.embedding) - 1
    first = model.histories.items[model.histories.offsets[2]]
    assert torch.equal(job["tokens"][2, 1:4], torch.from_numpy(model.paths[first]))


def test_names_of_parameters() -> None:
    assert peer_name("encoder.layers.1.norm_feed.weight") == "encoder.block.1.layer.1.layer_norm.weight"
    assert peer_name("decoder.layers.0.norm_feed.weight") == "decoder.block.0.layer.2.layer_norm.weight"
    assert peer_name("decoder.layers.0.inner.weight") == "decoder.block.0.layer.2.DenseReluDense.wi.weight"
