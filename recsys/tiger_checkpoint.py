"""What a finished TIGER is on disk, for :mod:`recsys.checkpoint`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.semantic_id.codes import SemanticCodes
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.sequence_checkpoint import histories_of, history_tensors


def tiger_contents(model: Tiger) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able facts, and the tensors: parameters, codes and the histories that the model reads."""
    codes = model.codes
    facts = {
        "model": "tiger",
        "shape": dataclasses.asdict(model.transformer.shape),
        "reading": dataclasses.asdict(model.reading),
        "beam": model.beam,
        "codes": {"widths": codes.widths, "catalogue": codes.catalogue, "source": codes.source},
    }
    tensors = {"codes": torch.from_numpy(codes.codes.copy())} | history_tensors(model.histories)
    return facts, tensors | {f"transformer.{name}": t for name, t in model.transformer.state_dict().items()}


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
        generator=np.random.default_rng(0),
    )
    model.load_state_dict({name: t for name, t in tensors.items() if name.startswith("transformer.")})
    return model
