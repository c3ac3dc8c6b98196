"""What a finished sequence model is on disk, for :mod:`recsys.checkpoint`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.tables.table import Table
from recsys.models.hstu import HstuEncoder
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import Encoder, SequenceModel
from recsys.sequences import Sequences


def sequence_contents(model: SequenceModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able facts, and the tensors: table, encoder and the histories that the model reads."""
    tensors = {"items": model.items.weight()} | history_tensors(model.histories)
    tensors |= {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    return {"model": "sequence", "similarity": model.similarity, "encoder": model.encoder.facts()}, tensors


def sequence_model(facts: dict[str, Any], tensors: dict[str, Tensor], items: Table) -> SequenceModel:
    """The model of :func:`sequence_contents`."""
    parameters = dict(facts["encoder"])
    match parameters.pop("name"):
        case "hstu":
            encoder: Encoder = HstuEncoder(items.dim, **parameters, generator=np.random.default_rng(0))
        case "sasrec":
            encoder = SasRecEncoder(items.dim, **parameters, generator=np.random.default_rng(0))
        case other:
            raise KeyError(f"encoder {other!r}")
    prefix = "encoder."
    encoder.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    return SequenceModel(items, encoder, histories_of(tensors), similarity=facts["similarity"])


def history_tensors(histories: Sequences) -> dict[str, Tensor]:
    """The arrays of the histories that a model reads."""
    arrays = {"items": histories.items, "offsets": histories.offsets}
    arrays |= {} if histories.times is None else {"times": histories.times}
    return {f"histories.{name}": torch.from_numpy(array) for name, array in arrays.items()}


def histories_of(tensors: dict[str, Tensor]) -> Sequences:
    """The histories of :func:`history_tensors`."""
    return Sequences(
        tensors["histories.items"].numpy(),
        tensors["histories.offsets"].numpy(),
        tensors["histories.times"].numpy() if "histories.times" in tensors else None,
    )
