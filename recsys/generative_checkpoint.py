"""What a finished TIGER or RPG is on disk, for :mod:`recsys.checkpoint`."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embeddings.id_map import IdMap
from embeddings.semantic_id.codes import SemanticCodes
from recsys.mlp import Mlp
from recsys.models.dense_head import DenseHead, DenseSettings
from recsys.models.rpg import Rpg
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.sequence_checkpoint import below, encoder_of, histories_of, history_tensors
from recsys.table_tensors import read_table, table_tensors


def tiger_contents(model: Tiger) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able facts, and the tensors: parameters, content, codes and the histories that the model reads."""
    facts = {
        "model": "tiger",
        "shape": dataclasses.asdict(model.transformer.shape),
        "reading": dataclasses.asdict(model.reading),
        "beam": model.beam,
        "codes": _code_facts(model.codes),
    }
    if model.dense is not None:
        facts["dense"] = {
            "settings": dataclasses.asdict(model.dense.settings),
            "widths": model.dense.network.widths,
        }
    return facts, _code_tensors(model.codes) | history_tensors(model.histories) | model.state_dict()


def tiger_model(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Tiger:
    """The model of :func:`tiger_contents`, on the CPU."""
    model = Tiger(
        _codes(facts["codes"], tensors),
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


def rpg_contents(model: Rpg) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON-able facts, and the tensors: tokens, encoder, heads, codes and the histories that the model reads."""
    facts = {"temperature": model.temperature, "encoder": model.encoder.facts(), "codes": _code_facts(model.codes)}
    tensors = table_tensors("tokens", model.tokens) | _code_tensors(model.codes) | history_tensors(model.histories)
    for name, part in (("encoder", model.encoder), ("heads", model.heads)):
        tensors |= {f"{name}.{key}": tensor for key, tensor in part.state_dict().items()}
    return {"model": "rpg", **facts}, tensors


def rpg_model(facts: dict[str, Any], tensors: dict[str, Tensor]) -> Rpg:
    """The model of :func:`rpg_contents`."""
    codes = _codes(facts["codes"], tensors)
    tokens = read_table("tokens", tensors, IdMap.identity(len(tensors["tokens"]) - 1))
    encoder = encoder_of(facts["encoder"], tokens.dim, tensors)
    model = Rpg(codes, tokens, encoder, histories_of(tensors), temperature=facts["temperature"])
    model.heads.load_state_dict(below("heads.", tensors))
    return model


def _code_facts(codes: SemanticCodes) -> dict[str, Any]:
    return {"widths": codes.widths, "catalogue": codes.catalogue, "source": codes.source}


def _code_tensors(codes: SemanticCodes) -> dict[str, Tensor]:
    return {"codes": torch.from_numpy(codes.codes.copy())}


def _codes(facts: dict[str, Any], tensors: dict[str, Tensor]) -> SemanticCodes:
    return SemanticCodes(tensors["codes"].numpy(), tuple(facts["widths"]), facts["catalogue"], facts["source"])
