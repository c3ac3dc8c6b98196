"""From plain settings to a gate."""

from __future__ import annotations

import dataclasses
from typing import Literal, assert_never

import torch

from recsys.rankers.gates.comet import CometGate
from recsys.rankers.gates.dense_to_sparse import Annealing, DenseToSparseGate
from recsys.rankers.gates.dselect_k import DSelectKGate
from recsys.rankers.gates.gate import Gate
from recsys.rankers.gates.hashed import HashGate
from recsys.rankers.gates.permuted import PermutationSearch, PermutedGate
from recsys.rankers.gates.top_k import TopKGate

GateName = Literal["softmax", "top_k", "hash", "dselect_k", "comet", "dense_to_sparse"]


@dataclasses.dataclass(frozen=True)
class GateSpec:
    """Which gate, and its settings.

    Attributes:
        name: the gate; "softmax" is the dense one.
        k: experts of an example, selectors of DSelect-k, trees of COMET.
        noisy: whether Top-k has noise.
        gamma: width of the smooth step of DSelect-k and COMET.
        entropy_weight: of their selectors.
        per_example: whether DSelect-k looks at the example.
        annealing: of EvoMoE's gate.
        search: of a permutation of the experts, which any gate may have; None for none.
    """

    name: GateName = "softmax"
    k: int = 2
    noisy: bool = False
    gamma: float = 1.0
    entropy_weight: float = 0.0
    per_example: bool = True
    annealing: Annealing = dataclasses.field(default_factory=Annealing)
    search: PermutationSearch | None = None


def build_gate(spec: GateSpec, width: int, num_experts: int, num_keys: int, noise: torch.Generator) -> Gate:
    """A gate whose weights :meth:`Gate.draw` has yet to draw.

    Args:
        spec: which gate.
        width: D of the inputs.
        num_experts: E.
        num_keys: ids that the hash gate assigns.
        noise: draws what a training step draws.

    Raises:
        ValueError: k does not lie in [1, E], or gamma is not above 0.
    """
    if spec.gamma <= 0:
        raise ValueError(f"gamma, the width of the smooth step, must be above 0, got {spec.gamma}")
    gate = _gate(spec, width, num_experts, num_keys, noise)
    return gate if spec.search is None else PermutedGate(gate, spec.search, noise)


def _gate(spec: GateSpec, width: int, num_experts: int, num_keys: int, noise: torch.Generator) -> Gate:
    smooth = {"gamma": spec.gamma, "entropy_weight": spec.entropy_weight}
    match spec.name:
        case "softmax":
            return TopKGate(width, num_experts, num_experts)
        case "top_k":
            return TopKGate(width, num_experts, spec.k, noise if spec.noisy else None)
        case "hash":
            return HashGate(num_keys, num_experts, spec.k)
        case "dselect_k":
            return DSelectKGate(width, num_experts, spec.k, **smooth, per_example=spec.per_example)
        case "comet":
            return CometGate(width, num_experts, spec.k, **smooth)
        case "dense_to_sparse":
            return DenseToSparseGate(width, num_experts, spec.k, spec.annealing, noise)
        case _:
            assert_never(spec.name)
