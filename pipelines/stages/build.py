"""A trainable model, and the settings of its training, from the configuration."""

from __future__ import annotations

from typing import Any

from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.tables import build_table
from pipelines.config import Train
from pipelines.config_models import AdapTau, Bsl, Kgat, LightGcn, Mf, Negatives, NeuMf, Ngcf, SimpleX, UltraGcn
from pipelines.config_models import Loss as LossConfig
from pipelines.stages.compress import Maps
from pipelines.stages.sparse import build_tables, layer_sparsities, optimizer_spec
from recsys.knowledge_graph import KnowledgeGraph
from recsys.losses import Adaptation, Constraints, Loss
from recsys.mlp import layer_shapes
from recsys.models.kgat import Kgat as KgatModel
from recsys.models.lightgcn import LightGcn as LightGcnModel
from recsys.models.mf import MatrixFactorization
from recsys.models.neumf import NeuMf as NeuMfModel
from recsys.models.ngcf import Ngcf as NgcfModel
from recsys.models.simplex import SimpleX as SimpleXModel
from recsys.models.transr import TransR
from recsys.rng import generator
from recsys.samplers import NegativeSampling
from recsys.self_supervision import SelfSupervision
from recsys.settings import FitSettings, Selection
from recsys.spectral import spectral_vectors, start_from


def build_mf(
    config: Mf, maps: Maps, seed: int, train: csr_array, steps: int, knowledge: KnowledgeGraph | None = None
) -> MatrixFactorization | NeuMfModel:
    """A model of two tables, freshly drawn, or begun from the training graph with ``init: spectral``.

    Args:
        config: of the model.
        maps: the rows of each side.
        seed: of the run.
        train: [users, items], whose counts make the frequency blocks of mixed dimensions.
        steps: of the training at most, for the schedule of sparse tables.
        knowledge: the graph of KGAT.
    """
    users, items = build_tables(config, maps, seed, train, steps)
    if config.init == "spectral":
        for table, id_map, vectors in zip(
            (users, items), (maps.users, maps.items), spectral_vectors(train, config.dim, seed=seed), strict=True
        ):
            start_from(table, id_map, vectors, config.init_std)
    match config:
        case LightGcn(ssl=term) | Ngcf(ssl=term):
            ssl = SelfSupervision(**term.model_dump()) if term else None
            parameters: Any = {"layers": config.layers, "similarity": config.similarity, "l2": config.l2, "ssl": ssl}
            if isinstance(config, Ngcf):
                draws = generator(seed, "init", "mixers")
                return NgcfModel(users, items, dropout=config.dropout, generator=draws, **parameters)
            return LightGcnModel(users, items, norm_exponent=config.norm_exponent, **parameters)
        case Kgat():
            assert knowledge is not None
            others = build_table(
                IdMap.identity(knowledge.num_entities - knowledge.num_items),
                config.dim,
                backend=config.backend,
                optimizer=optimizer_spec(config),
                init_std=config.init_std,
                generator=generator(seed, "init", "entities"),
                dtype=config.table_dtype,
            )
            return KgatModel(
                users,
                items,
                TransR(others, knowledge, generator=generator(seed, "init", "relations")),
                widths=config.widths,
                similarity=config.similarity,
                l2=config.l2,
                dropout=config.dropout,
                generator=generator(seed, "init", "mixers"),
            )
        case NeuMf():
            shapes = layer_shapes((config.table_dim, *config.widths))
            return NeuMfModel(
                users,
                items,
                widths=config.widths,
                generator=generator(seed, "init", "perceptron"),
                sparsities=layer_sparsities(config.sparse_layers, shapes, steps),
            )
        case SimpleX():
            return SimpleXModel(
                users,
                items,
                similarity=config.similarity,
                user_weight=config.user_weight,
                pooling=config.pooling,
                generator=generator(seed, "init", "mixers"),
            )
        case _:
            return MatrixFactorization(users, items, similarity=config.similarity)


def fit_settings(config: Mf, train: Train) -> FitSettings:
    """The plain arguments of the trainer."""
    return FitSettings(
        loss=_loss(config.loss),
        negatives=sampling(config.negatives),
        batch_size=train.batch_size,
        epochs=train.epochs,
        selection=Selection(
            train.selection, train.eval_every_epochs, train.patience, refit=train.refits, max_minutes=train.max_minutes
        ),
        gradient_clip_norm=train.gradient_clip_norm,
        precision=train.precision,
        checkpoint_minutes=train.checkpoint_minutes,
        lr_decay=train.lr_decay,
        positives=train.positives,
    )


def sampling(negatives: Negatives) -> NegativeSampling:
    """The plain arguments of the sampler."""
    alpha = negatives.alpha if negatives.name == "popularity" else 0.0
    return NegativeSampling(alpha=alpha, **negatives.model_dump(exclude={"name", "alpha"}))


def _loss(config: LossConfig) -> Loss:
    """The plain arguments of a loss."""
    match config:
        case Bsl(temperature=temperature, positive_temperature=positive):
            return Loss(**config.model_dump() | {"positive_temperature": positive or temperature})
        case AdapTau(warmup_epochs=warmup, beta=beta, quantile=quantile, user_dropout=dropout):
            return Loss("adap_tau", adaptation=Adaptation(warmup, beta, quantile), user_dropout=dropout)
        case UltraGcn():
            return Loss("ultragcn", constraints=Constraints(**config.model_dump(exclude={"name"})))
        case _:
            return Loss(**config.model_dump())
