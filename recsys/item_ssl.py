"""Self-supervision of an item tower: two views of an item's features must agree (Yao et al. 2021)."""

from __future__ import annotations

import dataclasses
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from recsys.dense_adam import DenseAdam
from recsys.feature_masks import drop_features, drop_values, mask_features
from recsys.features import Features, MultiCategorical
from recsys.mlp import Mlp
from recsys.models.tower import ID
from recsys.rng import generator
from recsys.self_supervision import info_nce

ItemSslName = Literal["rfm", "cfm", "dropout", "spread_out"]
Mask = npt.NDArray[np.bool_]


class ItemTower(Protocol):
    """What the term needs of a model: the items' features, and what is made of them."""

    @property
    def features(self) -> Features:
        """Of the whole catalogue."""
        ...

    @property
    def network(self) -> Mlp:
        """From :meth:`inputs` to the vectors."""
        ...

    def inputs(self, features: Features) -> Tensor:
        """Float32 [n, W], differentiable."""
        ...


@dataclasses.dataclass(frozen=True)
class ItemSsl:
    """A term ``weight * InfoNCE`` of two views of items that are drawn uniformly from the catalogue.

    - ``rfm``: random feature masking. A random half of the features is masked in one view, the others in the other.
    - ``cfm``: correlated feature masking. A random feature and those that tell most about it are masked in one view,
      the others in the other. The id takes no part in it: it is masked in one of the views at random.
    - ``dropout``: each view loses each feature with probability ``dropout``.
    - ``spread_out``: both views are the item itself, which only pushes items apart (Zhang et al. 2017).

    Attributes:
        name: which of them.
        weight: alpha of the term.
        temperature: divisor of the cosines, its own.
        batch_size: items drawn in a step.
        dropout: probability with which a value of a list is dropped as well, except for ``spread_out``.
        projection: "shared": the item tower makes both views' vectors; "separate": the second view has a network of
            its own over the same tables (H and G of the paper).

    Raises:
        ValueError: A parameter is out of range.
    """

    name: ItemSslName
    weight: float = 0.1
    temperature: float = 0.1
    batch_size: int = 1024
    dropout: float = 0.1
    projection: Literal["shared", "separate"] = "shared"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not (self.weight >= 0 and self.temperature > 0 and self.batch_size >= 2 and 0 <= self.dropout < 1):
            raise ValueError(
                "ssl needs weight >= 0, temperature > 0, batch_size >= 2 and 0 <= dropout < 1, got"
                f" {self.weight}, {self.temperature}, {self.batch_size} and {self.dropout}"
            )


class ItemSslTerm(nn.Module):
    """The term over one item tower; plug it into any objective that trains such a tower.

    Args:
        tower: gets the gradients.
        ssl: which term.
        affinity: float [k, k], how much each feature tells about each other, for ``cfm``; see
            :func:`recsys.mutual_information.adjusted_mutual_information`.
        seed: of the run.
        lr: learning rate of the second network, where it is separate.

    Raises:
        ValueError: ``cfm`` without an affinity of the right shape, or too few features for complementary views or for
            any difference between them.
    """

    def __init__(
        self,
        tower: ItemTower,
        ssl: ItemSsl,
        *,
        affinity: npt.NDArray[np.float64] | None = None,
        seed: int,
        lr: float = 1e-3,
    ) -> None:
        super().__init__()
        names = [column.name for column in tower.features.columns]
        if ssl.name in ("rfm", "cfm") and len(names) < 2:
            raise ValueError(
                f"ssl {ssl.name} shares the features out between two views and needs at least 2 of them, got"
                f" {', '.join(names) or 'none'}; give the item tower more, or use spread_out"
            )
        lists = any(isinstance(column, MultiCategorical) for column in tower.features.columns)
        if ssl.name == "dropout" and len(names) < 2 and not lists:
            raise ValueError(
                "ssl dropout masks no feature that is alone, and drops values of lists only, got"
                f" {', '.join(names) or 'none'}; give the item tower more features, or use spread_out"
            )
        if ssl.name == "cfm" and (affinity is None or affinity.shape != (len(names), len(names))):
            found = "none" if affinity is None else str(list(affinity.shape))
            raise ValueError(f"ssl cfm needs the affinity of {len(names)} features with each other, got {found}")
        self.ssl = ssl
        self._tower = (tower,)  # not a module of this one: its state belongs to the model
        self._affinity = affinity
        self._seed = seed
        self.second: Mlp | None = None
        if ssl.projection == "separate" and ssl.name != "spread_out":
            self.second = Mlp(tower.network.widths, generator(seed, "init", "ssl"))
        named = self.second.named_parameters() if self.second is not None else ()
        self.adam = DenseAdam({name.replace(".", "_"): parameter for name, parameter in named}, lr)

    def loss(self, *counters: str | int) -> Tensor:
        """The weighted term for one draw of items; the same counters give the same draw."""
        tower, rng = self._tower[0], generator(self._seed, "ssl", *counters)
        count = min(self.ssl.batch_size, tower.features.num_rows)
        items = tower.features.take(rng.permutation(tower.features.num_rows)[:count])
        first, second = self.views(items, rng)
        one = tower.network(tower.inputs(first))
        if self.ssl.name == "spread_out":
            return self.ssl.weight * info_nce(one, one, self.ssl.temperature)
        two = (tower.network if self.second is None else self.second)(tower.inputs(second))
        return self.ssl.weight * info_nce(one, two, self.ssl.temperature)

    def step(self) -> None:
        """Apply the gradient to what belongs to the term; the tower has its own optimizers."""
        self.adam.step()

    def views(self, features: Features, rng: np.random.Generator) -> tuple[Features, Features]:
        """Two augmentations of the same items (section 3.3): features are masked, then values of lists dropped."""
        share = self.ssl.dropout
        match self.ssl.name:
            case "spread_out":
                return features, features
            case "dropout":
                views = drop_features(features, share, rng), drop_features(features, share, rng)
            case "rfm":
                masked = np.zeros(len(features.columns), dtype=bool)
                masked[rng.permutation(len(masked))[: len(masked) // 2]] = True
                views = mask_features(features, masked), mask_features(features, ~masked)
            case "cfm":
                first, second = self._correlated(features, rng)
                views = mask_features(features, first), mask_features(features, second)
        return drop_values(views[0], share, rng), drop_values(views[1], share, rng)

    def _correlated(self, features: Features, rng: np.random.Generator) -> tuple[Mask, Mask]:
        """Bool [k] for each view: a drawn feature with the floor(k / 2) that tell most about it, and the others.

        With two features beside the id only the drawn one is masked, so that no view is empty.
        """
        assert self._affinity is not None
        is_id = np.array([column.name == ID for column in features.columns])
        content = np.flatnonzero(~is_id)
        drawn = int(rng.choice(content))
        others = content[content != drawn]
        nearest = others[np.argsort(-self._affinity[drawn, others], kind="stable")]
        masked = np.zeros(len(is_id), dtype=bool)
        masked[[drawn, *nearest[: max(0, min(len(content) // 2, len(content) - 2))]]] = True
        rest = ~masked & ~is_id
        with_first = not rest.any() or rng.random() < 0.5  # where all content is masked, the id is what is left
        return masked | (is_id & (not with_first)), rest | (is_id & with_first)
