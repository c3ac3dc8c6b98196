"""What a finished sequence model is on disk, for :mod:`recsys.checkpoint`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.tables.table import Table
from recsys.mlp import Mlp
from recsys.models.content_items import ContentItems
from recsys.models.hstu import HstuEncoder
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import Encoder, SequenceModel
from recsys.sequences import Sequences
from recsys.table_tensors import table_tensors


def sequence_contents(model: SequenceModel) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able facts, and the tensors: items, encoder and the histories that the model reads."""
    facts: dict[str, Any] = {"similarity": model.similarity, "encoder": model.encoder.facts()}
    match model.items:
        case ContentItems(network=network, content=content):
            facts["widths"] = list(network.widths)
            tensors = {"content": content} | {f"network.{name}": p for name, p in network.state_dict().items()}
        case table:
            tensors = table_tensors("items", table)
    tensors |= {f"encoder.{name}": tensor for name, tensor in model.encoder.state_dict().items()}
    tensors |= history_tensors(model.histories)
    return {"model": "sequence", **facts}, tensors


def sequence_model(facts: dict[str, Any], tensors: dict[str, Tensor], table: Callable[[], Table]) -> SequenceModel:
    """The model of :func:`sequence_contents`; ``table`` reads the items' where it has one."""
    items = _content(facts["widths"], tensors) if "content" in tensors else table()
    encoder = encoder_of(facts["encoder"], items.dim, tensors)
    return SequenceModel(items, encoder, histories_of(tensors), similarity=facts["similarity"])


def encoder_of(facts: dict[str, Any], dim: int, tensors: dict[str, Tensor]) -> Encoder:
    """The encoder of :meth:`recsys.models.sequence_model.Encoder.facts` and of the tensors below ``encoder.``."""
    parameters = dict(facts)
    match parameters.pop("name"):
        case "hstu":
            encoder: Encoder = HstuEncoder(dim, **parameters, generator=np.random.default_rng(0))
        case "sasrec":
            encoder = SasRecEncoder(dim, **parameters, generator=np.random.default_rng(0))
        case other:
            raise KeyError(f"encoder {other!r}")
    encoder.load_state_dict(below("encoder.", tensors))
    return encoder


def _content(widths: list[int], tensors: dict[str, Tensor]) -> ContentItems:
    network = Mlp(widths, np.random.default_rng(0))
    network.load_state_dict(below("network.", tensors))
    return ContentItems(tensors["content"], network)


def below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names start so, without that start."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


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
