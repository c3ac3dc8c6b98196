"""Configuration of a ranking experiment: ``task: ctr`` at the top of the file selects it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.config import Budget, Compressor, Tracking
from pipelines.config_search import Search
from pipelines.config_section import Optimizer, Section
from pipelines.config_semantic import SemanticIds, SemanticRows

Numeric = Literal["standardise", "log_standardise", "log_bucket"]


class Label(Section):
    """Column with the label; with ``at_least`` the label is whether the value reaches it, else it must be 0 or 1."""

    column: str = "label"
    at_least: float | None = None


class Join(Section):
    """A Parquet file beside the events whose ``columns`` are added by the column ``key``."""

    source: str
    key: str
    columns: tuple[str, ...] = Field(min_length=1)


class EventSplit(Section):
    """How events become train, valid and test.

    ``given`` reads ``column``; ``order`` cuts the file; ``user_order`` cuts each user's events in the order of
    ``column``, those with a negative position staying in train; ``random`` draws.
    """

    method: Literal["given", "order", "user_order", "random"] = "random"
    column: str | None = None
    valid: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.method in ("given", "user_order") and self.column is None:
            raise ValueError(f"method {self.method} needs column")
        if self.valid + self.test >= 1:
            raise ValueError(f"valid ({self.valid}) + test ({self.test}) leave nothing for training")
        return self


class EventData(Section):
    """What every source of labelled events has.

    ``user`` and ``item`` are the fields that are compressed, grouped by and whose pairs are the graph.
    """

    name: str
    source: str = Field(description="file or directory; `data:frappe` = $RECSYS_DATA/frappe")
    user: str = "user"
    item: str = "item"
    min_count: int = Field(default=1, ge=1, description="train events of a value with an id of its own")
    min_positives: int = Field(default=0, ge=0, description="positive ones that a user or an item needs besides")


class FrappeData(EventData):
    """Frappe in NFM's published split: held-out parts as published, train negatives drawn again."""

    format: Literal["frappe"] = "frappe"
    negatives: int = Field(default=2, ge=1, description="drawn for each train positive, in the same context")
    seed: int = 0


class TableData(EventData):
    """Parquet, CSV or TSV files with named columns."""

    format: Literal["table"] = "table"
    events: str = Field(default="interactions.parquet", description="file or glob inside a source directory")
    label: Label = Label()
    joins: tuple[Join, ...] = ()
    fields: tuple[str, ...] = Field(min_length=1, description="categorical columns; a list is one value, its set")
    numeric: dict[str, Numeric] = Field(default={})
    split: EventSplit = EventSplit()
    time: str | None = Field(default=None, description="column of the events' times; gives slices by the item's age")


class LibfmData(EventData):
    """Text of ``label index:1 index:1 ...``, one file a split; the place in the line is the field."""

    format: Literal["libfm"] = "libfm"
    train: str = "train.libfm"
    valid: str = "valid.libfm"
    test: str = "test.libfm"
    fields: tuple[str, ...] = Field(min_length=1, description="names of the places, in order")


class CriteoData(EventData):
    """Criteo's layout, TSV or Parquet: label, 13 numbers I1..I13, 26 categories C1..C26."""

    format: Literal["criteo"] = "criteo"
    events: str = "train.txt"
    user: str = "C1"
    item: str = "C2"
    min_count: int = Field(default=10, ge=1)
    numeric: Numeric = "log_bucket"
    split: EventSplit = EventSplit()


class NextItemData(EventData):
    """Histories in three splits: every interaction is a positive, drawn items are the negatives.

    The items of ``catalogue`` all have ids, whether train has them or not, and its ``columns`` are fields.
    """

    format: Literal["next_item"] = "next_item"
    events: str = "interactions.parquet"
    user: str = "user_id"
    item: str = "item_id"
    split: str = Field(default="split", description="column that says train, valid or test")
    catalogue: str = Field(default="items.parquet", description="one row an item, with the column `item`")
    columns: tuple[str, ...] = Field(default=(), description="of the catalogue that are fields of the ranker")
    negatives: int = Field(default=2, ge=1, description="drawn once for each positive, in every split")
    seed: int = 0
    order: str | None = Field(
        default=None, description="column that orders a user's items; null: the order of the rows"
    )
    history: int = Field(default=0, ge=0, description="last items before an event that a sequence ranker sees")


Data = Annotated[FrappeData | TableData | LibfmData | CriteoData | NextItemData, Field(discriminator="format")]


class TowerSettings(Section):
    """A multi-layer perceptron."""

    hidden: tuple[int, ...] = (400, 400, 400)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    batch_norm: bool = False


class RankerSettings(TowerSettings):
    """What every ranker has: its (first) tower, and the tables of its fields."""

    dim: int = Field(default=16, ge=1)
    dims: dict[str, Annotated[int, Field(ge=1)]] = Field(default={}, description="fields with another dim")
    backend: Literal["torch", "fbgemm", "torchrec"] = "torch"
    optimizer: Optimizer = Optimizer()
    init_std: float = Field(default=1e-4, gt=0)


class DcnV2(RankerSettings):
    """Deep and cross network, version 2 (Wang et al. 2021)."""

    name: Literal["dcn_v2"] = "dcn_v2"
    layers: int = Field(default=3, ge=1, description="cross layers")
    structure: Literal["parallel", "stacked"] = "parallel"
    rank: int | None = Field(default=None, ge=1, description="of low-rank cross layers; null: full matrices")
    experts: int = Field(default=4, ge=1, description="of the low-rank mixture")


class Dlrm(RankerSettings):
    """Deep learning recommendation model with inner products of fields (Naumov et al. 2019)."""

    name: Literal["dlrm"] = "dlrm"
    bottom: tuple[int, ...] = (64,)


class DeepFm(RankerSettings):
    """Factorisation machine and tower over the same vectors (Guo et al. 2017)."""

    name: Literal["deep_fm"] = "deep_fm"


class WideDeep(RankerSettings):
    """Linear part and tower (Cheng et al. 2016)."""

    name: Literal["wide_deep"] = "wide_deep"


class FinalMlp(RankerSettings):
    """Two gated towers joined by a bilinear form (Mao et al. 2023)."""

    name: Literal["final_mlp"] = "final_mlp"
    second: TowerSettings = TowerSettings()
    heads: int = Field(default=1, ge=1)
    gates: tuple[tuple[str, ...], tuple[str, ...]] | None = Field(
        default=None, description="fields that each stream's gate sees; an empty list: a learned constant"
    )
    gate_hidden: tuple[int, ...] = (800,)


class Din(RankerSettings):
    """Deep interest network: target attention over the history (Zhou et al. 2018); needs ``dataset.history``."""

    name: Literal["din"] = "din"
    attention: tuple[int, ...] = Field(default=(36,), description="hidden widths of the activation unit")


RankerModel = Annotated[DcnV2 | Dlrm | DeepFm | WideDeep | FinalMlp | Din, Field(discriminator="name")]


class RankerTrain(Section):
    """The training of a ranker by log-loss; ``lr`` is that of the layers, tables have ``optimizer.lr``."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=4096, ge=1)
    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    plateau_factor: float = Field(default=0.1, gt=0, le=1, description="times lr after a validation without a gain")
    patience: int = Field(default=2, ge=1, description="validations without a gain before stopping")
    id_dropout: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default={}, description="field: share of the train events that show its id as unseen"
    )
    selection: Literal["auc", "neg_log_loss"] = "auc"
    precision: Literal["float32", "bfloat16"] = Field(default="float32", description="of the layers' matrix products")
    checkpoint_minutes: float = Field(default=1.0, gt=0)


class FieldRows(SemanticRows):
    """Semantic rows of a field whose values have no content: their codes are made from the graph."""

    users: Literal["graph"] = "graph"
    codes: Literal["graph"] = "graph"


class FieldCompressor(Compressor):
    """How the values of one field share rows, with a budget of its own."""

    rows: str | int = Field(description="a share of the field's values, or a number of rows")
    semantic: FieldRows | None = None


class RankingVariant(Section):
    """One row of the report. ``model``, ``train`` are merged over the experiment's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    model: RankerModel
    compressor: Compressor = Compressor()
    field_compressors: dict[str, FieldCompressor] = Field(
        default={}, description="of fields beside dataset.user and dataset.item, by name"
    )
    train: RankerTrain = RankerTrain()

    @property
    def compressors(self) -> str:
        """How ids share rows, in words: the compressor of user and item, then those of other fields."""
        by_name: dict[str, list[str]] = {}
        for field, own in self.field_compressors.items():
            by_name.setdefault(own.name, []).append(field)
        return ", ".join([self.compressor.name, *(f"{'+'.join(fields)} {name}" for name, fields in by_name.items())])


class RankingExperiment(Section):
    """A whole ranking experiment: what ``recsys run`` takes where ``task: ctr`` is set."""

    task: Literal["ctr"] = "ctr"
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    dataset: Data
    budget: Budget = Budget(rows="25%")
    semantic_ids: SemanticIds | None = Field(default=None, description="codes of the items of a catalogue")
    variants: tuple[RankingVariant, ...] = Field(min_length=1)
    search: Search | None = Field(
        default=None, description="what `recsys sweep` tries; `recsys run` does not look at it"
    )
    tracking: Tracking = Tracking()
    output: str = Field(default="runs", description="directory that gets the run directories")
