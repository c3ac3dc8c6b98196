"""KGAT's epoch: interactions, then triples, then new attention."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from recsys.models.kgat import Kgat
from recsys.objective import Objective
from recsys.rng import generator
from recsys.samplers import IntArray, epoch_order
from recsys.settings import FitSettings


class KgatSteps:
    """Alternates between the two losses (Wang et al. 2019, sec. 3.4); the attention changes between epochs only.

    An epoch has as many batches of triples as of interactions. Each edge of the collaborative graph, the interactions
    among them, is a triple that holds; the same with another node drawn uniformly as its tail is one that does not.
    The loss that is reported is that of the interactions.

    Attributes:
        count: interactions of an epoch.
        steps_per_epoch: batches of both kinds.
    """

    def __init__(self, model: Kgat, train: csr_array, settings: FitSettings, *, seed: int) -> None:
        self._interactions = Objective(model, train, settings, seed=seed)
        self._model = model
        self._seed = seed
        self._clip_norm = settings.gradient_clip_norm
        self._batches = self._interactions.steps_per_epoch
        self.count = self._interactions.count
        self.steps_per_epoch = 2 * self._batches

    def knowledge(self) -> dict[str, IntArray]:
        """See :meth:`recsys.objective.Objective.knowledge`."""
        return self._interactions.knowledge()

    def state(self) -> dict[str, Tensor]:
        """The attention, which is that of the epoch's first step."""
        return {"attention": self._model.attention, **self._interactions.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from a :meth:`state`."""
        self._model.use_attention(state["attention"])
        self._interactions.load_state({name: tensor for name, tensor in state.items() if name != "attention"})

    def steps(self, phase: str, epoch: int, first_step: int) -> Iterator[tuple[int, int, float]]:
        """Train on an epoch from ``first_step`` on; a step on triples counts no interaction.

        Yields:
            (step, positives in the batch, mean loss before the update).
        """
        self._interactions.set_lr(epoch)
        if first_step == 0:
            self._model.refresh()
        if first_step < self._batches:
            yield from self._interactions.steps(phase, epoch, first_step)
        graph = self._model.collaborative
        order = epoch_order(graph.num_edges, seed=self._seed, phase=f"{phase} triples", epoch=epoch)
        bounds = np.linspace(0, graph.num_edges, self._batches + 1).astype(np.int64)
        for step in range(max(first_step, self._batches), self.steps_per_epoch):
            edges = order[bounds[step - self._batches] : bounds[step - self._batches + 1]]
            others = generator(self._seed, "tails", phase, epoch, step).integers(graph.num_nodes, size=len(edges))
            loss = self._model.knowledge_loss(edges, others, self._clip_norm)
            loss.backward()  # type: ignore[no-untyped-call]
            self._model.step()
            yield step, 0, float(loss.detach())
        self._model.refresh()
