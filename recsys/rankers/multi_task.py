"""Multi-task ranker: a mixture of experts over the fields' vectors, with a gate and a head for each task."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings.tables.collection import TableCollection
from recsys.rankers.experts import Experts
from recsys.rankers.extraction import Extraction
from recsys.rankers.gates.build import GateSpec, build_gate
from recsys.rankers.ranker import SCORED_AT_ONCE, FieldModel, Tower, initialise, perceptron
from recsys.rng import torch_generator
from recsys.task_events import TaskEvents


@dataclasses.dataclass(frozen=True)
class Task:
    """What is predicted, and what it weighs.

    Attributes:
        name: unique in a model.
        kind: "binary" labels are 0 or 1 and predictions log-odds; "regression" predicts the label itself.
        weight: of its mean loss in the loss of the model.
        mean: of the known labels in train; a regression learns ``(label - mean) / deviation``.
        deviation: their standard deviation, above 0.
    """

    name: str
    kind: Literal["binary", "regression"]
    weight: float = 1.0
    mean: float = 0.0
    deviation: float = 1.0


@dataclasses.dataclass(frozen=True)
class MultiTaskSpec:
    """The shape of a multi-task ranker.

    Attributes:
        tasks: T of them.
        gate: of each task.
        experts: how many all tasks share.
        private: how many more each task has for itself.
        expert: hidden widths and dropout of an expert.
        head: the same of a task's head, which ends in one number.
        key: field whose ids the hash gate assigns to experts.
        masked: share of the weights of an expert that EvoMoE's diversification sets to 0.
        levels: how many extraction networks there are, one on the other, each with as many experts.
    """

    tasks: tuple[Task, ...]
    gate: GateSpec = dataclasses.field(default_factory=GateSpec)
    experts: int = 16
    private: int = 0
    expert: Tower = dataclasses.field(default_factory=lambda: Tower((256,), 0.5))
    head: Tower = dataclasses.field(default_factory=lambda: Tower((256,)))
    key: str = "user"
    masked: float = 0.1
    levels: int = 1


@dataclasses.dataclass(frozen=True)
class Outputs:
    """What the model says of B events.

    Attributes:
        values: float32 [B, T]: log-odds of binary tasks, standardised labels of regressions.
        penalty: float32 [], of all gates.
        weights: for each task float32 [B, E] over all experts of the last level, shared ones first, then those of each
            task.
    """

    values: Tensor
    penalty: Tensor
    weights: list[Tensor]


class MultiTaskRanker(FieldModel):
    """``y_t = h_t(sum_i g_ti(x) f_i(x))`` for each task t, x the fields' vectors side by side.

    With the dense gate it is MMoE (Ma et al. 2018); with private experts customized gate control, and with two levels
    or more PLE, whose sums are the inputs of the level above (Tang et al. 2020, see :class:`Extraction`); with a sparse
    gate the setting of DSelect-k and COMET.

    Args:
        tables: one for each categorical field.
        spec: its shape.

    Raises:
        ValueError: There is no task, two have one name, or the spec does not fit.
    """

    diversified: Tensor

    def __init__(self, tables: TableCollection, spec: MultiTaskSpec) -> None:
        super().__init__(tables, 0)
        names = [task.name for task in spec.tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"a multi-task ranker needs tasks of different names, got {names}")
        keys = {field.name: field.id_map.num_ids for field in tables.fields}
        if spec.key not in keys:
            raise ValueError(f"key names the field {spec.key!r}; the fields are {', '.join(keys)}")
        if spec.levels < 1:
            raise ValueError(f"a multi-task ranker has at least one level, got {spec.levels}")
        self.spec, self.key = spec, list(keys).index(spec.key)
        self._levels = [self._level(place, keys[spec.key]) for place in range(spec.levels)]
        self.levels = nn.ModuleList(self._levels)
        self.heads = nn.ModuleList(perceptron(spec.expert.hidden[-1], spec.head, self.noise, out=1) for _ in names)
        self.register_buffer("diversified", torch.tensor(spec.gate.name != "dense_to_sparse"))

    def _level(self, place: int, num_keys: int) -> Extraction:
        spec, tasks, last = self.spec, len(self.spec.tasks), place == self.spec.levels - 1
        width = spec.expert.hidden[-1] if place else self.width
        total = spec.experts + spec.private * tasks
        seen = [spec.experts + spec.private] * tasks + ([] if last else [total])
        gates = [build_gate(spec.gate, width, count, num_keys, self.noise) for count in seen]
        return Extraction(Experts(width, total, spec.expert, self.noise), gates, tasks, spec.private)

    def forward(self, ids: Tensor) -> Outputs:
        """Predict every task of events with the ids int64 [B, F]."""
        first, *others = self._levels
        keys = ids[:, self.key]
        found = first(self.tables(ids), keys)
        penalties = [found.penalty]
        for level in others:
            found = level(torch.stack(found.mixed), keys)
            penalties.append(found.penalty)
        values = torch.cat([head(part) for head, part in zip(self.heads, found.mixed, strict=True)], dim=1)
        return Outputs(values, torch.stack(penalties).sum(), found.weights)

    def losses(self, values: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of each task over its known labels, float32 [T]; 0 where none is known.

        Args:
            values: float32 [B, T] as in :class:`Outputs`.
            labels: float32 [B, T], NaN where unknown.
        """
        known = ~labels.isnan()
        filled = labels.nan_to_num()
        found = []
        for place, task in enumerate(self.spec.tasks):
            value, label = values[:, place], filled[:, place]
            if task.kind == "binary":
                each = functional.binary_cross_entropy_with_logits(value, label, reduction="none")
            else:
                each = (value - (label - task.mean) / task.deviation).square()
            found.append(torch.where(known[:, place], each, 0.0).sum() / known[:, place].sum().clamp_min(1))
        return torch.stack(found)

    def total(self, losses: Tensor) -> Tensor:
        """The tasks' losses [T], weighted and summed."""
        return losses @ losses.new_tensor([task.weight for task in self.spec.tasks])

    def draw(self, seed: int) -> None:
        """Draw the initial weights of experts, gates and heads."""
        for place, level in enumerate(self._levels):
            level.draw(seed, *([place] if place else []))
        initialise(self.heads, torch_generator(seed, "init", "heads"))

    def advance(self, epochs: float) -> None:
        """Tell the gates the time before a training step, and diversify the experts when EvoMoE's gate opens."""
        for level in self._levels:
            level.advance(epochs)
        if not self.diversified and epochs >= self.spec.gate.annealing.shared_epochs:
            for level in self._levels:
                level.mixture.diversify(self.spec.masked, self.noise)
            self.diversified.fill_(True)  # noqa: FBT003

    @torch.no_grad()
    def predict(self, events: TaskEvents) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
        """Predictions in evaluation mode, and how the experts are used.

        Returns:
            float32 [E, T], log-odds of binary tasks and labels of regressions; float64 [2, T, experts]: mean weight of
            each expert of the last level, and share of the events that meet it.
        """
        was_training = self.training
        self.eval()
        out = np.empty((len(events), len(self.spec.tasks)), np.float32)
        usage = np.zeros((2, len(self.spec.tasks), self.spec.experts + self.spec.private * len(self.spec.tasks)))
        for start in range(0, len(events), SCORED_AT_ONCE):
            part = slice(start, min(start + SCORED_AT_ONCE, len(events)))
            found = self(torch.from_numpy(events.ids[part].astype(np.int64)))
            out[part] = found.values.numpy()
            routed = torch.stack(found.weights).double()
            usage += torch.stack([routed.sum(dim=1), (routed != 0).double().sum(dim=1)]).numpy()
        for place, task in enumerate(self.spec.tasks):
            if task.kind == "regression":
                out[:, place] = out[:, place] * task.deviation + task.mean
        self.train(was_training)
        return out, usage / max(len(events), 1)


def build_multi_task(spec: MultiTaskSpec, tables: TableCollection, *, seed: int) -> MultiTaskRanker:
    """A multi-task ranker over tables that are drawn already; its layers are drawn from the seed.

    Raises:
        ValueError: As :class:`MultiTaskRanker`, or a gate's or an expert's settings do not fit.
    """
    ranker = MultiTaskRanker(tables, spec)
    ranker.draw(seed)
    return ranker
