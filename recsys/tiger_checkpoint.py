"""What a finished TIGER is on disk, for :mod:`recsys.checkpoint`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.semantic_id.codes import SemanticCodes
from recsys.mlp import Mlp
from recsys.models.dense_head import DenseHead, DenseSettings
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.sequence_checkpoint import histories_of, history_tensors


def tiger_contents(model: Tiger) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able facts, and the tensors: parameters, content, codes and the histories that the model reads."""
    codes = model.codes
    facts = {
        "model": "tiger",
        "shape": dataclasses.asdict(model.transformer.shape),
        "reading": dataclasses.asdict(model.reading),
        "beam": model.beam,
        "codes": {"widths": codes.widths, "catalogue": codes.catalogue, "source": codes.source},
    }
    if model.dense is not None:
        facts["dense"] = {
            "settings": dataclasses.asdict(model.dense.settings),
            "widths": model.dense.network.widths,
        }
    tensors = {"codes": torch.from_numpy(codes.codes.copy())} | history_tensors(model.histories)
    return facts, tensors | model.state_dict()


def tiger_model(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Tiger:
    """The model of :func:`tiger_contents`, on the CPU."""
    about = facts["codes"]
    codes = SemanticCodes(tensors["codes"].numpy(), tuple(about["widths"]), about["catalogue"], about["source"])
    model = Tiger(
        codes,
        histories_of(tensors),
        T5Shape(**facts["shape"]),
        Reading(**facts["reading"]),
        beam=facts["beam"],
        dense=_dense(facts["dense"], tensors["dense.content"], facts["reading"]) if "dense" in facts else None,
        generator=np.random.default_rng(0),
    )
    model.load_state_dict({name: tensors[name] for name in model.state_dict()})
    return model


def _dense(facts: dict[str, Any], content: Tensor, reading: dict[str, int]) -> DenseHead:
    network = Mlp(facts["widths"], np.random.default_rng(0))
    return DenseHead(content, network, DenseSettings(**facts["settings"]), max_items=reading["max_items"])
