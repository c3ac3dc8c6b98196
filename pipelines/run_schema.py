"""What the files of a run directory hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Json = dict[str, Any]
BASELINES = frozenset({"popularity", "item_knn", "ease", "slim"})


class Record(BaseModel):
    """Part of a stored file: frozen; unknown keys are errors, so that a misspelt one cannot vanish."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DatasetFacts(Record):
    """Identity and size of the data of a run; ``train``, ``valid`` and ``test`` count interactions."""

    name: str
    users: int
    items: int
    train: int
    valid: int = 0
    test: int = 0
    hash: str


class Slice(Record):
    """A part of the test events, and the AUC of a ranker on it with its 95 % interval (DeLong).

    All three are None in a part that lacks a class or has a single event of one.
    """

    label: str
    events: int
    positives: int
    auc: float | None = None
    low: float | None = None
    high: float | None = None


class VariantResult(Record):
    """One variant with one seed: a row of ``metrics.json``.

    Attributes:
        table_bytes: bytes of the weights of all tables; ``optimizer_bytes`` those of the optimizer state.
        window_bytes: of the gradients that sparse tables kept for an update, at most; they are forgotten after it.
        map_bytes: of the maps from ids to rows as lookups read them; 0 where every id has a row of its own.
        layer_bytes: as those of tables, of all that is trained and no table, with the mask of sparse layers;
            ``layer_optimizer_bytes`` likewise.
        metrics: by "split/metric@k", e.g. "test/recall@20". A metric that is undefined (null in the file) is absent.
        ci95: bootstrap 95 % interval over users, by the same names.
        slices: of a ranker of clicks, by what tells the events apart: a field of few values, how many events or
            positives train has of the user or the item, the item's age; empty for other models.
        seconds: by stage, "train" and "evaluate" at least.
        peak_rss_mib: resident memory at its highest during training, MiB; None if unknown.
    """

    name: str
    model: str
    compressor: str | None = None
    table_rows: int = 0
    table_bytes: int = 0
    optimizer_bytes: int = 0
    window_bytes: int = 0
    map_bytes: int = 0
    layer_bytes: int = 0
    layer_optimizer_bytes: int = 0
    metrics: dict[str, float]
    ci95: dict[str, tuple[float, float]] = {}
    slices: dict[str, tuple[Slice, ...]] = {}
    seconds: dict[str, float] = {}
    epochs: int = 0
    seed: int = 0
    peak_rss_mib: float | None = None

    @field_validator("metrics", "ci95", mode="before")
    @classmethod
    def _drop_undefined(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        bad = (None, [None, None], (None, None))
        return {name: value for name, value in values.items() if value not in bad}

    @property
    def is_baseline(self) -> bool:
        """Whether the model is a simple one that every learned model has to beat."""
        return self.model in BASELINES


class Metrics(Record):
    """``metrics.json``: what a run found. ``selected_on`` is "test" in parity runs only, which the report labels."""

    experiment: str
    dataset: DatasetFacts
    variants: tuple[VariantResult, ...]
    versions: dict[str, str] = {}
    command: str = ""
    git: str = ""
    finished: str = ""
    selected_on: Literal["valid", "test"] = "valid"


class Curve(Record):
    """A metric for k = 1..max_k: mean over users and the 95 % band."""

    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


class EvaluationSummary(Record):
    """``evaluation.json``: what ``recsys.evaluator.Evaluation.summary()`` says; undefined numbers are None."""

    users: int = 0
    metrics: dict[str, float | None]
    ci95: dict[str, tuple[float | None, float | None]] = {}
    curves: dict[str, Curve] = {}
    slices: dict[str, list[Json]] = {}
    heat: dict[str, list[list[float | None]]] = {}


class Epoch(Record):
    """One line of ``history.json``; ``metrics`` is empty where the epoch was not evaluated.

    ``phase`` is "select" while validation decides when to stop, "refit" on train + validation.
    """

    epoch: int
    phase: str = "select"
    step: int = 0
    seconds: float = 0.0
    loss: float | None = None
    triples_per_second: float | None = None
    rss_mib: float | None = None
    metrics: dict[str, float | None] = {}


class WorstBucket(Record):
    """A table row that many popular entities share."""

    side: Literal["users", "items"]
    row: int
    size: int
    titles: tuple[str, ...] = ()
    compressor: str = ""


class Compression(Record):
    """``compression.json``; the dictionaries are those of ``embeddings`` (``describe``, ``stability``, ...)."""

    budget: Json = {}
    budgets: dict[str, Json] = Field(
        default={}, description="where several are used, budgets or algorithms: rows, clustering, stability"
    )
    clustering: Json = {}
    stability: Json = {}
    maps: dict[str, dict[str, Json]] = Field(default={}, description="compressor -> side -> describe()")
    worst_buckets: tuple[WorstBucket, ...] = ()
