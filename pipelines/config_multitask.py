"""Configuration of a multi-task experiment: ``task: multitask`` at the top of the file selects it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipelines.config import Budget, Compressor, Tracking
from pipelines.config_search import Search as Sweep
from pipelines.config_section import Optimizer, Section


class TaskLabel(Section):
    """A task. Its label is whether there was an interaction (``seen``), ``column``, or whether that is ``at_least``."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")
    label: Literal["seen", "value", "at_least"]
    column: str | None = None
    at_least: float | None = None
    known_from: float | None = Field(default=None, description="a smaller value of the column is an unknown label")
    weight: float = Field(default=1.0, gt=0, description="of the task's mean loss")

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if (self.label == "at_least") != (self.at_least is not None):
            raise ValueError("label at_least needs the value `at_least`, and no other label has one")
        if (self.label == "seen") != (self.column is None) or (self.label == "seen" and self.known_from is not None):
            raise ValueError("labels value and at_least read `column`; label seen has neither column nor known_from")
        return self


class TaskData(Section):
    """Interactions with ratings, and as negatives pairs of users and items without one, which have no rating."""

    name: str
    source: str = Field(description="file or directory; `data:ml1m` = $RECSYS_DATA/ml1m")
    events: str = Field(default="interactions.parquet", description="file or glob inside a source directory")
    user: str = "user_id"
    item: str = "item_id"
    max_users: int | None = Field(default=None, ge=1, description="keep so many users, drawn at random")
    negatives: float | Literal["all"] = Field(default=1.0, description="drawn per interaction; all: every other pair")
    valid: float = Field(default=0.1, gt=0, lt=1, description="share of interactions, and of negatives")
    test: float = Field(default=0.1, gt=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.valid + self.test >= 1:
            raise ValueError(f"valid ({self.valid}) + test ({self.test}) leave nothing for training")
        if self.negatives != "all" and self.negatives <= 0:
            raise ValueError(f"negatives must be above 0 or all, got {self.negatives}")
        return self


class Search(Section):
    """Local search for a permutation of the experts, the + of COMET+."""

    epochs: float = Field(default=3.0, gt=0)
    tau_start: float = Field(default=1e-3, gt=0)
    tau_end: float = Field(default=1e-7, gt=0)
    iterations_start: int = Field(default=20, ge=1)
    iterations_end: int = Field(default=150, ge=1)
    noise: float = Field(default=0.01, ge=0)
    entropy: float = Field(default=1e-4, ge=0)


class GateSettings(Section):
    """What every gate may have."""

    search: Search | None = None


class SoftmaxGate(GateSettings):
    """Dense gate of MMoE (Ma et al. 2018)."""

    name: Literal["softmax"] = "softmax"


class SparseGate(GateSettings):
    """A gate that chooses k experts."""

    k: int = Field(default=2, ge=1)


class TopKGate(SparseGate):
    """Softmax over the k largest logits, optionally noisy (Shazeer et al. 2017)."""

    name: Literal["top_k"] = "top_k"
    noisy: bool = False


class HashGate(SparseGate):
    """k random experts for each user, drawn once (Roller et al. 2021)."""

    name: Literal["hash"] = "hash"


class SmoothGate(SparseGate):
    """A gate of smooth steps."""

    gamma: float = Field(default=1.0, gt=0, description="width of the smooth step")
    entropy: float = Field(default=0.05, ge=0, description="weight of the selectors' entropy")


class DSelectKGate(SmoothGate):
    """k selectors with binary codes (Hazimeh et al. 2021)."""

    name: Literal["dselect_k"] = "dselect_k"
    per_example: bool = True


class CometGate(SmoothGate):
    """k soft trees (Ibrahim et al. 2023)."""

    name: Literal["comet"] = "comet"


class DenseToSparseGate(SparseGate):
    """EvoMoE: one expert, its diversified copies, then a gate that anneals to k (Nie et al. 2021)."""

    name: Literal["dense_to_sparse"] = "dense_to_sparse"
    shared_epochs: float = Field(default=1.0, ge=0)
    anneal_epochs: float = Field(default=10.0, gt=0)
    tau_start: float = Field(default=1.0, gt=0)
    tau_end: float = Field(default=0.5, gt=0)
    threshold: float = Field(default=1e-3, ge=0, lt=1)
    balance: float = Field(default=0.0, ge=0, description="weight of the loss that evens the experts' use")
    masked: float = Field(default=0.1, ge=0, lt=1, description="share of a copy's weights that is set to 0")


GateConfig = Annotated[
    SoftmaxGate | TopKGate | HashGate | DSelectKGate | CometGate | DenseToSparseGate, Field(discriminator="name")
]


class ExpertMixture(Section):
    """A mixture of experts over the vectors of user and item, with a gate and a head for each task."""

    name: Literal["expert_mixture"] = "expert_mixture"
    gate: GateConfig = SoftmaxGate()
    experts: int = Field(default=16, ge=1, description="that all tasks share")
    private: int = Field(default=0, ge=0, description="experts of each task alone")
    levels: int = Field(default=1, ge=1, description="levels of experts; PLE has private experts at 2 or more")
    hidden: tuple[int, ...] = Field(default=(256,), min_length=1, description="of an expert")
    dropout: float = Field(default=0.5, ge=0, lt=1, description="in an expert")
    head: tuple[int, ...] = (256,)
    dim: int = Field(default=128, ge=1, description="of each table")
    backend: Literal["torch", "fbgemm", "torchrec"] = "torch"
    optimizer: Optimizer = Optimizer(lr=2e-4)
    init_std: float = Field(default=0.05, gt=0)


class TaskTrain(Section):
    """The training by the weighted sum of the tasks' losses; ``lr`` is that of the layers."""

    epochs: int = Field(default=100, ge=1)
    batch_size: int = Field(default=512, ge=1)
    lr: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    plateau_factor: float = Field(default=1.0, gt=0, le=1, description="times lr after a validation without a gain")
    patience: int = Field(default=5, ge=1, description="validations without a gain before stopping")
    selection: str = Field(default="neg_loss", description="neg_loss, or TASK/auc of a binary task")
    checkpoint_minutes: float = Field(default=1.0, gt=0)


class TaskVariant(Section):
    """One row of the report. ``model``, ``train`` are merged over the experiment's."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$")
    model: ExpertMixture = ExpertMixture()
    compressor: Compressor = Compressor()
    train: TaskTrain = TaskTrain()


class MultiTaskExperiment(Section):
    """A whole multi-task experiment: what ``recsys run`` takes where ``task: multitask`` is set."""

    task: Literal["multitask"] = "multitask"
    experiment: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    description: str = ""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    dataset: TaskData
    tasks: tuple[TaskLabel, ...] = Field(min_length=1)
    budget: Budget = Budget(rows="25%")
    variants: tuple[TaskVariant, ...] = Field(min_length=1)
    reference: str | None = Field(default=None, description="variant that the others are tested against; first one")
    search: Sweep | None = Field(
        default=None, description="what `recsys sweep` tries; `recsys run` does not look at it"
    )
    tracking: Tracking = Tracking()
    output: str = Field(default="runs", description="directory that gets the run directories")
