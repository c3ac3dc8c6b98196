"""Training of a two-tower variant: features, histories and mutual information of a dataset, then the fit."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from embeddings.tables.spec import TableBytes, total_bytes
from pipelines.atomic import write_json
from pipelines.cache import Cache
from pipelines.config import Train
from pipelines.config_two_tower import TowerInputs, TwoTower
from pipelines.dataset import Dataset, SplitName
from pipelines.errors import DataError
from pipelines.features import FeatureEncoder, default_encodings
from pipelines.stages.build_towers import build_two_tower
from pipelines.stages.compress import Maps
from pipelines.stages.sparse import prune_networks, prune_tables, window_bytes
from pipelines.stages.training_facts import training_facts
from recsys.features import Features
from recsys.histories import Context, Histories
from recsys.item_ssl import ItemSsl
from recsys.models.tower import ID, id_column
from recsys.models.two_tower import TwoTower as TwoTowerModel
from recsys.mutual_information import adjusted_mutual_information
from recsys.rng import generator
from recsys.settings import EpochRecord, FitResult, Selection
from recsys.tower_objective import Candidates, TowerSettings
from recsys.tower_training import TowerData, fit_two_tower

AFFINITY_VERSION = 2
_ORDERS = ("timestamp", "position")


@dataclasses.dataclass(frozen=True)
class Encoded:
    """The features of one side, and what made them from its columns."""

    encoder: FeatureEncoder
    features: Features

    @property
    def digest(self) -> str:
        """SHA-256 of the features."""
        digest = hashlib.sha256(json.dumps(self.features.facts()).encode())
        for name, array in sorted(self.features.arrays().items()):
            digest.update(name.encode() + array.tobytes())
        return digest.hexdigest()


def encode(dataset: Dataset, config: TwoTower) -> dict[str, Encoded]:
    """The features of "users" and "items", learned from those that have a training interaction.

    Raises:
        DataError: A column is missing, has a name that is taken, or cannot be encoded; a tower is left without input,
            or an entity has no feature where the tower has no id.
    """
    train = dataset.matrix("train")
    seen = {"users": np.diff(train.indptr) > 0, "items": np.bincount(train.indices, minlength=dataset.num_items) > 0}
    found = {}
    for side, frame, inputs in (("users", dataset.users, config.user), ("items", dataset.items, config.item)):
        facts = dataset.manifest.entities.get(side, {})
        alone = side == "items" or config.history is None
        try:
            found[side] = _encode_side(frame, inputs, facts.get("features", {}), seen[side], alone=alone)
        except DataError as error:
            raise DataError(f"{side} ({facts.get('file', 'no file')}): {error}") from error
    return found


def _encode_side(
    frame: pl.DataFrame, inputs: TowerInputs, kinds: dict[str, str], seen: npt.NDArray[np.bool_], *, alone: bool
) -> Encoded:
    """One side; ``alone``: nothing but its features and its id goes into the tower."""
    shared = _shared(frame, kinds)
    encodings = default_encodings(shared) if inputs.features is None else inputs.features
    if ID in encodings:
        raise DataError(f"feature {ID!r} has the name of the tower's own column of ids; rename the column in the file")
    if not encodings and not inputs.id and alone:
        dropped = ", ".join(name for name in kinds if name not in shared)
        lost = f" but {dropped}, whose values all differ as ids do" if dropped else ""
        raise DataError(f"no features{lost}, and the tower has no id; name features that rows share, or set id: true")
    encoder = FeatureEncoder.fit(frame, encodings, seen)
    features = encoder.encode(frame, allow_empty=inputs.id or not alone)
    ids = (id_column(features.num_rows),) if inputs.id else ()
    return Encoded(encoder, Features(features.num_rows, (*ids, *features.columns)))


def _shared(frame: pl.DataFrame, kinds: dict[str, str]) -> dict[str, str]:
    """The features without the categories of which every entity has its own: those are ids, and tell nothing of it."""
    return {name: kind for name, kind in kinds.items() if kind != "categorical" or not _all_differ(frame[name])}


def _all_differ(values: pl.Series) -> bool:
    known = values.drop_nulls()
    return 0 < len(known) == known.n_unique()


def training_key(config: TwoTower, encoded: dict[str, Encoded]) -> dict[str, Any]:
    """What a training depends on beside the configuration and the data."""
    ssl, loss = config.ssl, config.loss
    return {
        "features": {side: part.digest for side, part in encoded.items()},
        **({"affinity": AFFINITY_VERSION} if ssl is not None and ssl.name == "cfm" else {}),
        **({"offered": "once"} if loss.name == "mixed" and loss.logq != "none" else {}),
    }


def affinity_stage(cache: Cache, items: Encoded) -> npt.NDArray[np.float64]:
    """Mutual information between the item features, float64 [k, k], made once for a dataset and its encodings."""

    def build(directory: Path) -> None:
        found = adjusted_mutual_information(items.features)
        names = [column.name for column in items.features.columns]
        write_json(directory / "affinity.json", {"features": names, "information": found.tolist()})

    entry = cache.stage("affinity", {"version": AFFINITY_VERSION, "features": items.digest}, build)
    return np.array(json.loads((entry / "affinity.json").read_bytes())["information"])


def histories(dataset: Dataset, *splits: SplitName) -> Histories:
    """The events of the splits in the order of time; without one, shuffled, so that the last are any.

    Of several events of a user with one item the last is kept, as a matrix of interactions has it.
    """
    frame = dataset.frame(*splits)
    order = [name for name in _ORDERS if name in frame.columns]
    if order:
        frame = frame.sort("user", *order, maintain_order=True)
    frame = frame.unique(["user", "item"], keep="last", maintain_order=True)
    users, items = (frame[name].to_numpy().astype(np.int64) for name in ("user", "item"))
    if not order:
        shuffled = generator(0, "history order").permutation(len(users))
        users, items = users[shuffled], items[shuffled]
    return Histories.of_events(users, items, num_users=dataset.num_users, num_items=dataset.num_items)


def context_of(config: TwoTower, columns: Sequence[str]) -> Context:
    """Which of a user's items an event is predicted from.

    Args:
        config: of the model.
        columns: of the interactions, beside user and item.

    Raises:
        DataError: It is to be those before the event, and the data have no order.
    """
    asked = "auto" if config.history is None else config.history.context
    if any(name in columns for name in _ORDERS):
        return "before" if asked == "auto" else asked
    if asked == "before":
        raise DataError(
            "history.context before needs the order of events, and the data have neither timestamp nor position; name"
            " one in dataset.columns, or use others"
        )
    return "others"


def tower_settings(config: TwoTower, train: Train, context: Context) -> TowerSettings:
    """The plain arguments of the trainer."""
    loss = config.loss
    return TowerSettings(
        candidates=Candidates(loss.name, loss.count, loss.logq, loss.hardness),
        context=context,
        user_dropout=config.user.dropout,
        item_dropout=config.item.dropout,
        ssl=None if config.ssl is None else ItemSsl(**config.ssl.model_dump()),
        batch_size=train.batch_size,
        epochs=train.epochs,
        selection=Selection(
            train.selection, train.eval_every_epochs, train.patience, refit=train.refits, max_minutes=train.max_minutes
        ),
        checkpoint_minutes=train.checkpoint_minutes,
    )


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A trained model, how it went, the bytes of optimizers in training, the histories of each phase."""

    model: TwoTowerModel
    result: FitResult
    optimizer_bytes: int
    layer_optimizer_bytes: int
    histories: dict[str, Histories]


def fit(
    cache: Cache,
    dataset: Dataset,
    config: TwoTower,
    train: Train,
    encoded: dict[str, Encoded],
    maps: Maps,
    *,
    seed: int,
    scratch: Path,
    on_epoch: Callable[[EpochRecord], None],
) -> Fitted:
    """Build and train a two-tower model."""
    on_test = train.selected_on == "test"
    first = histories(dataset, "train", "valid") if on_test else histories(dataset, "train")
    union = histories(dataset, "train", "valid") if train.refits else None
    context = context_of(config, dataset.manifest.columns)
    affinity = affinity_stage(cache, encoded["items"]) if config.ssl is not None and config.ssl.name == "cfm" else None
    steps = train.epochs * -(-len(first.items) // train.batch_size)
    features = {side: part.features for side, part in encoded.items()}
    model = build_two_tower(config, features, maps, seed, first.matrix(), steps)
    data = TowerData(first, dataset.matrix("test" if on_test else "valid"), union, affinity)
    settings = tower_settings(config, train, context)
    result = fit_two_tower(model, data, settings, seed=seed, checkpoint_dir=scratch, on_epoch=on_epoch)
    trained = sum(table.bytes().optimizer for table in model.tables()), model.layer_bytes().optimizer
    if config.sparse is not None and config.sparse.method == "prune":
        prune_tables(model, config.sparse.density)
    if config.sparse_layers is not None and config.sparse_layers.method == "prune":
        prune_networks(model, config.sparse_layers)
    return Fitted(model, result, *trained, {"select": first} | ({"refit": union} if union is not None else {}))


def facts(fitted: Fitted) -> dict[str, Any]:
    """What the report says of the tables and the training."""
    tables = fitted.model.tables()
    rows = sum(table.num_rows for table in tables)
    layers = TableBytes(fitted.model.layer_bytes().weights, fitted.layer_optimizer_bytes)
    sizes = dataclasses.replace(total_bytes(*(table.bytes() for table in tables)), optimizer=fitted.optimizer_bytes)
    return training_facts(fitted.result, rows=rows, tables=sizes, layers=layers, window=window_bytes(tables))
