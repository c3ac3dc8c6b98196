"""From plain settings to a ranker with freshly drawn weights."""

from __future__ import annotations

import dataclasses
from typing import Literal, assert_never

from torch import nn

from embeddings.tables.collection import TableCollection
from recsys.rankers.dcn_v2 import Cross, DcnV2
from recsys.rankers.din import Din, Interest
from recsys.rankers.dlrm import Dlrm
from recsys.rankers.factorisation import DeepFm, WideDeep
from recsys.rankers.final_mlp import FinalMlp, Streams
from recsys.rankers.ranker import Ranker, Tower, initialise
from recsys.rng import torch_generator

RankerName = Literal["dcn_v2", "dlrm", "deep_fm", "wide_deep", "final_mlp", "din"]


@dataclasses.dataclass(frozen=True)
class RankerSpec:
    """Which ranker, and its shape.

    Attributes:
        name: the model.
        tower: its (first, top) tower.
        cross: of DCN-V2.
        bottom: hidden widths of DLRM's bottom tower.
        streams: of FinalMLP.
        interest: of DIN.
    """

    name: RankerName
    tower: Tower = dataclasses.field(default_factory=Tower)
    cross: Cross = dataclasses.field(default_factory=Cross)
    bottom: tuple[int, ...] = (64,)
    streams: Streams = dataclasses.field(default_factory=Streams)
    interest: Interest = dataclasses.field(default_factory=Interest)


def build_ranker(spec: RankerSpec, tables: TableCollection, num_dense: int, *, seed: int) -> Ranker:
    """A ranker over tables that are drawn already; its layers are drawn from the seed.

    Raises:
        ValueError: Dimensions, widths or field names do not fit.
    """
    ranker = _ranker(spec, tables, num_dense)
    draws = torch_generator(seed, "init", "layers")
    initialise(ranker, draws)
    if isinstance(ranker, FinalMlp):
        nn.init.xavier_normal_(ranker.bilinear, generator=draws)
    return ranker


def _ranker(spec: RankerSpec, tables: TableCollection, num_dense: int) -> Ranker:
    match spec.name:
        case "dcn_v2":
            return DcnV2(tables, num_dense, spec.tower, spec.cross)
        case "dlrm":
            return Dlrm(tables, num_dense, spec.tower, spec.bottom)
        case "deep_fm":
            return DeepFm(tables, num_dense, spec.tower)
        case "wide_deep":
            return WideDeep(tables, num_dense, spec.tower)
        case "final_mlp":
            return FinalMlp(tables, num_dense, spec.tower, spec.streams)
        case "din":
            return Din(tables, num_dense, spec.tower, spec.interest)
        case _:
            assert_never(spec.name)
