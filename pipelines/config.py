"""Typed configuration: YAML in, frozen objects out, every mistake reported at once."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from embeddings.names import CompressorName
from pipelines.config_ensemble import Ensemble
from pipelines.config_knowledge import KnowledgeFiles
from pipelines.config_models import Model
from pipelines.config_rpg import Rpg
from pipelines.config_search import Search
from pipelines.config_section import Section
from pipelines.config_semantic import SemanticIds, SemanticRows
from pipelines.config_sequence import SequenceModel
from pipelines.config_tiger import Tiger

FeatureKind = Literal["categorical", "numeric", "list", "text"]


class Columns(Section):
    """Names of the columns of the interaction file(s).

    A column of the usual name (``rating``, ``movie_id``, ...) is taken where the name here is the default and absent.
    """

    user: str = "user_id"
    item: str = "item_id"
    rating: str | None = None
    timestamp: str | None = None
    position: str | None = None
    split: str | None = None


class Entities(Section):
    """A users or items file. ``source`` is relative to the source directory, or to the folder of a file or glob."""

    source: str
    id: str
    title: str | None = None
    columns_without_header: tuple[str, ...] | None = Field(default=None, min_length=1)
    features: dict[str, FeatureKind] = Field(default={})


class Filters(Section):
    """What is dropped before the split, in this order: ratings, duplicates, users and items with too many, k-core."""

    min_rating: float | None = None
    max_rating: float | None = None
    deduplicate: Literal["last", "first", "none"] = "last"
    user_core: int = Field(default=0, ge=0)
    item_core: int = Field(default=0, ge=0)
    max_user_interactions: int | None = Field(default=None, ge=1)
    max_item_interactions: int | None = Field(default=None, ge=1)


class Split(Section):
    """How interactions become train, valid and test. ``auto``: given, else global time, else per-user ratio."""

    method: Literal["auto", "given", "global_time", "leave_last_n", "user_ratio", "random_ratio"] = "auto"
    valid: float = Field(default=0.1, gt=0, lt=1, description="share of the interactions (of train, when given)")
    test: float = Field(default=0.2, gt=0, lt=1)
    n: int = Field(default=1, ge=1, description="leave_last_n: interactions per user in test, and in valid")
    seed: int = 0


class Dataset(Section):
    """Where raw events are and how they become a dataset."""

    name: str
    source: str = Field(description="file, glob or directory; `sample:anime`; `data:gowalla` = $RECSYS_DATA/gowalla")
    format: Literal["auto", "parquet", "csv", "tsv", "jsonl", "recbole", "lightgcn"] = "auto"
    interactions: str = Field(default="interactions.parquet", description="file or glob inside a source directory")
    columns: Columns = Columns()
    columns_without_header: tuple[str, ...] | None = Field(
        default=None, min_length=2, description="names of the columns of csv or tsv files whose first line is an event"
    )
    timestamp_unit: Literal["auto", "s", "ms", "us", "ns", "iso"] = "auto"
    users: Entities | None = None
    items: Entities | None = None
    knowledge_graph: KnowledgeFiles | None = None
    filters: Filters = Filters()
    id_type: Literal["auto", "integer", "string"] = Field(default="auto", description="auto: told from the first rows")
    split: Split = Split()
    on_error: Literal["fail", "quarantine"] = "fail"


class LevelShares(Section):
    """How ``multi_graphhash`` and ``residual_codes`` divide their rows between levels, own and hashed rows."""

    count: int = Field(default=3, ge=0, description="clustering levels")
    ratio: float = Field(default=3.0, ge=1, description="rows of a level over those of the coarser one")
    head_share: float = Field(default=0.2, ge=0, lt=1, description="rows of the most frequent ids, one each")
    hash_share: float = Field(default=0.0, ge=0, lt=1, description="rows that the other ids share at random")
    neighbour_share: float = Field(default=0.0, ge=0, lt=1, description="rows that are clusters of an id's neighbours")
    neighbours: int = Field(default=8, ge=1, description="clusters of neighbours that an id sums")
    popularity_share: float = Field(default=0.0, ge=0, lt=1, description="rows of ids of about the same frequency")
    weights: tuple[float, ...] | None = Field(default=None, description="of the levels, coarse first; none: 1 each")


class Compressor(Section):
    """How ids share rows. All but ``full`` get exactly the row budget of the experiment."""

    name: CompressorName = "full"
    algorithm: Literal["louvain", "leiden"] = "louvain"
    levels: LevelShares | None = None
    semantic: SemanticRows | None = None
    narrow: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="columns, as a share of dim, of the row that each id has which else only shares rows; 0: none",
    )


class Budget(Section):
    """Rows of the compressed tables, users and items together; exactly one field is set.

    ``rows`` is a share ("16%") or a number of rows; ``table_mib`` counts the tables' weights; ``resolution`` is
    GraphHash's own parameter. The first two are met within 2 % by searching the resolution, and ``table_mib`` is never
    exceeded; the rows that GraphHash gives per side are then used by every compressor.
    """

    rows: str | int | None = None
    table_mib: float | None = Field(default=None, gt=0)
    resolution: float | None = Field(default=None, gt=0)


class Train(Section):
    """The training loop."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=2048, ge=1)
    eval_every_epochs: int = Field(default=5, ge=1)
    patience: int = Field(default=3, ge=1, description="evaluations without a gain before stopping")
    selection: str = Field(default="recall@20", description="validation metric that selects the epoch")
    selected_on: Literal["valid", "test"] = Field(
        default="valid",
        description="test: train on train+valid and pick the best epoch on test, as many papers do; the report warns",
    )
    refit: bool = Field(default=True, description="train again on train+valid for the selected number of epochs")
    gradient_clip_norm: float | None = Field(default=None, gt=0)
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpoint_minutes: float = Field(default=1.0, gt=0)
    lr_decay: float = Field(
        default=1.0, gt=0, le=1, description="share of lr that is left in epoch ``epochs``, falling linearly"
    )
    max_minutes: float | None = Field(default=None, gt=0, description="stop selection after this long")
    positives: Literal["interactions", "users"] = Field(
        default="interactions",
        description="of an epoch: every interaction once, or as many draws of a user, each with one of the user's",
    )

    @property
    def refits(self) -> bool:
        """Whether there is a second training; test selects among epochs that have train and validation already."""
        return self.refit and self.selected_on == "valid"

    @property
    def sees_valid(self) -> bool:
        """Whether the final model has learned from validation."""
        return self.refit or self.selected_on == "test"


class Evaluate(Section):
    """The exact evaluation of the test split."""

    k: tuple[int, ...] = (5, 10, 20, 50)
    max_k: int = Field(default=200, ge=1, description="curves go to this k")
    bootstrap: int = Field(default=1000, ge=100)
    auc: bool = True
    unmasked: bool = Field(
        default=False, description="also rank with the items that a user has seen; metrics as recall_unmasked@10"
    )


class Variant(Section):
    """One row of the report. ``model``, ``train`` are merged over the experiment's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+=@%-]*$")
    model: Model | SequenceModel | Tiger | Rpg | Ensemble = Field(discriminator="name")
    compressor: Compressor | None = None
    budget: Budget | None = Field(default=None, description="of the rows; null: the experiment's")
    train: Train = Train()


class Tracking(Section):
    """MLflow. The default is an sqlite file in the working directory."""

    enabled: bool = True
    uri: str = "sqlite:///mlflow.db"
    system_metrics: bool = True


class Experiment(Section):
    """A whole experiment: what ``recsys run`` takes, after merging ``dataset.base`` and the variants' overrides."""

    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    dataset: Dataset
    budget: Budget = Budget(rows="16%")
    semantic_ids: SemanticIds | None = None
    budgets: tuple[str | int, ...] = Field(
        default=(), description="shares or numbers of rows instead of budget; compressed variants run at each of them"
    )
    evaluate: Evaluate = Evaluate()
    variants: tuple[Variant, ...] = Field(min_length=1)
    search: Search | None = Field(
        default=None, description="what `recsys sweep` tries; `recsys run` does not look at it"
    )
    tracking: Tracking = Tracking()
    output: str = Field(default="runs", description="directory that gets the run directories")
