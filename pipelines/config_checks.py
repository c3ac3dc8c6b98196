"""Rules of an experiment that no single field can tell."""

from __future__ import annotations

import re
from collections.abc import Iterator

from embeddings.names import SEMANTIC
from pipelines.config import Budget, Compressor, Dataset, Experiment, Train, Variant
from pipelines.config_budgets import budget_of, group_of, is_compressed
from pipelines.config_ensemble import Ensemble, check_ensemble
from pipelines.config_ignored import check_ignored
from pipelines.config_models import Kgat, LightGcn, Mf, Negatives, NeuMf, is_searched
from pipelines.config_multitask import ExpertMixture
from pipelines.config_narrow import check_narrow
from pipelines.config_problems import IGNORED, Finding, did_you_mean
from pipelines.config_ranking import RankerModel
from pipelines.config_rpg import Rpg, check_reader, check_rpg
from pipelines.config_section import EpochModel, Optimizer, TableModel
from pipelines.config_semantic import SemanticIds, SemanticRows, check_semantic_ids, check_semantic_rows, check_sources
from pipelines.config_sequence import Sasrec
from pipelines.config_tiger import Tiger, check_tiger
from pipelines.config_two_tower import TwoTower
from pipelines.errors import DataError
from pipelines.frozen_settings import check_frozen
from pipelines.sweep.space import AnyExperiment, check_search

METRICS = ("recall", "recall_capped", "ndcg", "map", "mrr", "hit", "precision")
"""Ranking metrics that can select an epoch; written with a cut-off, as ``recall@20``."""

WITHOUT_NEGATIVES = ("in_batch_softmax", "directau", "softmax")
"""Losses of :class:`Mf` and its kind that never draw negatives."""

ROUNDED_OPTIMIZERS = ("sgd", "rowwise_adagrad")
"""Optimizers of rows below float32: the state of others takes more than the rows save."""

CLUSTERING = ("graphhash", "double_graphhash", "multi_graphhash")
"""Compressors that read ``compressor.algorithm``."""


def check(experiment: Experiment) -> Iterator[Finding]:
    """Yield the key and the message of every rule that ``experiment`` breaks."""
    yield from _check_budgets(experiment)
    yield from _check_widths(experiment)
    yield from check_names(experiment)
    yield from _check_negatives(experiment)
    yield from check_ignored(
        [(i, v.model) for i, v in enumerate(experiment.variants) if isinstance(v.model, Mf | TwoTower)]
    )
    yield from check_source(experiment.dataset)
    yield from check_search(experiment)
    yield from check_frozen(experiment.semantic_ids)
    dense = any(isinstance(v.model, Tiger) and v.model.dense is not None for v in experiment.variants)
    yield from check_semantic_ids(experiment.semantic_ids, dense=dense)
    split = experiment.dataset.split
    if split.method != "leave_last_n" and split.valid + split.test >= 1:
        yield ("dataset", "split"), f"valid ({split.valid}) + test ({split.test}) leave nothing for training"
    ks, max_k = experiment.evaluate.k, experiment.evaluate.max_k
    if not ks or min(ks) < 1 or max(ks) > max_k:
        yield ("evaluate", "k"), f"got {list(ks)}, each must lie in [1, {max_k}] (evaluate.max_k)"
    else:
        yield from _check_selection(experiment)
    for index, variant in enumerate(experiment.variants):
        if isinstance(variant.model, Kgat) and experiment.dataset.knowledge_graph is None:
            yield ("variants", index, "model", "name"), "kgat needs dataset.knowledge_graph: the files of the triples"
        if isinstance(variant.model, Tiger):
            for key, message in check_tiger(experiment, variant):
                yield ("variants", index, *key), message
        if isinstance(variant.model, Rpg):
            for key, message in check_rpg(experiment, variant):
                yield ("variants", index, *key), message
        if isinstance(variant.model, Ensemble):
            for where, message in check_ensemble(variant.model, variant, experiment.variants[:index]):
                yield ("variants", index, *where), message
        for key, message in _check_variant(variant, experiment.semantic_ids):
            yield ("variants", index, *key), message


def check_source(dataset: Dataset) -> Iterator[Finding]:
    """Yield a finding if the files of a dataset are not there."""
    from pipelines.ingest.source import resolve  # imports polars; a mistyped file name is told without it

    try:
        resolve(dataset)
    except DataError as error:
        yield ("dataset", "source"), str(error)


def _check_budgets(experiment: Experiment) -> Iterator[Finding]:
    yield from check_budget(experiment.budget)
    for index, rows in enumerate(experiment.budgets):
        for _, message in check_budget(Budget(rows=rows)):
            yield ("budgets", index), message
        if rows in experiment.budgets[:index]:
            yield ("budgets", index), f"{rows!r} occurs twice"
    if experiment.budgets and "budget" in experiment.model_fields_set:
        yield ("budgets",), "budget is set too; give one budget, or several in budgets"
    for index, variant in enumerate(experiment.variants):
        for key, message in check_budget(variant.budget) if variant.budget else ():
            yield ("variants", index, *key), message


def _check_widths(experiment: Experiment) -> Iterator[Finding]:
    """Tables of equal budget have equal rows, so that a budget in MiB needs rows of equal bytes too."""
    first: dict[tuple[Budget, bool], tuple[str, int]] = {}
    for index, variant in enumerate(experiment.variants):
        model, budget = variant.model, budget_of(experiment, variant)
        if not isinstance(model, TableModel) or budget.table_mib is None or not is_compressed(variant):
            continue
        if variant.compressor is not None and variant.compressor.narrow:
            message = "budget.table_mib counts the bytes of whole rows alone; give budget.rows, or remove narrow"
            yield ("variants", index, "compressor", "narrow"), message
        name, width = first.setdefault(group_of(experiment, variant), (variant.name, model.row_bytes))
        if model.row_bytes != width:
            message = f"rows of {model.row_bytes} bytes, those of {name} have {width}; budget.table_mib needs one size"
            key = "dim" if model.table_dtype == "float32" else "table_dtype"
            yield ("variants", index, "model", key), f"{message}, or a budget of its own for each"


def check_budget(budget: Budget) -> Iterator[Finding]:
    """Yield a finding if not exactly one field is set, or rows cannot be read."""
    given = {name: value for name, value in budget.model_dump().items() if value is not None}
    if len(given) != 1:
        got = ", ".join(f"{name}: {value}" for name, value in given.items()) or "none"
        yield ("budget",), f"exactly one of rows, table_mib, resolution must be set, got {got}"
    if budget.rows is not None:
        for message in check_rows(budget.rows, 2, "one row for users and one for items"):
            yield ("budget", "rows"), message


def check_rows(rows: str | int, least: int, why: str) -> Iterator[str]:
    """Yield a message for a share that cannot be read or lies outside (0, 100], or for fewer than ``least`` rows."""
    if isinstance(rows, str):
        share = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", rows)
        if share is None or not 0 < float(share[1]) <= 100:
            yield f'got {rows!r}, must be a share in (0, 100] as "16%" or a whole number of rows'
    elif rows < least:
        yield f"got {rows}, must be at least {least}: {why}"


def check_names(experiment: AnyExperiment) -> Iterator[Finding]:
    """Yield a finding for two variants of one name, or two seeds that are the same."""
    names = [variant.name for variant in experiment.variants]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ("variants", index, "name"), f"{name!r} is the name of two variants"
    if len(set(experiment.seeds)) != len(experiment.seeds):
        yield ("seeds",), f"got {list(experiment.seeds)}, a seed occurs twice"


def _check_negatives(experiment: Experiment) -> Iterator[Finding]:
    """Settings of negatives that no loss would read; those that other variants use may be the file's default."""
    models = [(index, v.model) for index, v in enumerate(experiment.variants) if isinstance(v.model, Mf)]
    used = {model.negatives for _, model in models if model.loss.name not in WITHOUT_NEGATIVES}
    for index, model in models:
        if model.loss.name in WITHOUT_NEGATIVES and model.negatives not in {Negatives(), *used}:
            plain = Negatives().model_dump()
            given = ", ".join(f"{k}: {v}" for k, v in model.negatives.model_dump().items() if v != plain[k])
            message = f"loss {model.loss.name} draws none, so that {given} {IGNORED}"
            yield ("variants", index, "model", "negatives"), message
        if model.negatives.group is not None:
            alone = not model.negatives.shared or model.loss.name == "ultragcn" or isinstance(model, (NeuMf, Sasrec))
            if alone:
                message = f"{model.name} with {model.loss.name} and shared: {str(model.negatives.shared).lower()}"
                yield ("variants", index, "model", "negatives", "group"), f"{message} has no groups; remove it"


def _check_selection(experiment: Experiment) -> Iterator[Finding]:
    """The selecting metric of every trained variant must be among those that the test split is evaluated by."""
    trained = [
        variant.train.selection
        for variant in experiment.variants
        if isinstance(variant.model, EpochModel) or is_searched(variant.model)
    ]
    for selection in dict.fromkeys(trained):
        cut, ks = selection.partition("@")[2], experiment.evaluate.k
        if cut.isdigit() and int(cut) >= 1 and int(cut) not in ks:
            more = sorted({*ks, int(cut)})
            yield ("evaluate", "k"), f"got {list(ks)} without the k of train.selection {selection!r}; set it to {more}"


def _check_variant(variant: Variant, ids: SemanticIds | None) -> Iterator[Finding]:
    model = variant.model
    if isinstance(model, TableModel):
        yield from _check_tables(model)
        if isinstance(model, TwoTower):
            yield from _check_two_tower(variant)
        if isinstance(model, Mf):
            yield from _check_one_by_one(model, variant.train)
        if isinstance(model, NeuMf):
            yield from _check_plain_training(model.name, variant.train)
        if isinstance(model, Sasrec):
            yield from _check_sequence(model, variant)
        if variant.compressor is not None:
            yield from check_levels(variant.compressor)
            yield from check_algorithm(variant.compressor)
            yield from check_narrow(variant.compressor, model)
            yield from _check_semantic(variant.compressor, ids, users=not model.items_only)
    elif variant.compressor is not None:
        yield ("compressor",), f"model {model.name!r} has no embedding table to compress; remove `compressor`"
    if not (isinstance(model, EpochModel) or is_searched(model)):
        return
    name, at, cut = variant.train.selection.partition("@")
    if name not in METRICS or not at or not cut.isdigit() or int(cut) < 1:
        hint = did_you_mean(name, METRICS)
        allowed = ", ".join(f"{metric}@K" for metric in METRICS)
        yield ("train", "selection"), f"got {variant.train.selection!r}{hint}, must be one of {allowed}"


def check_optimizer(model: TableModel | RankerModel | ExpertMixture) -> Iterator[Finding]:
    """Yield a finding if the back end lacks the optimizer."""
    if model.backend != "torch" and model.optimizer.name in ("adam", "lazy_adam"):
        message = f"the {model.backend} back end has no {model.optimizer.name}; use backend: torch, or rowwise_adagrad"
        yield ("model", "optimizer", "name"), message


def _check_tables(model: TableModel) -> Iterator[Finding]:
    yield from check_optimizer(model)
    if model.table_dtype != "float32":
        yield from _check_rounded(model)
    if model.backend == "fbgemm":
        yield from _check_fbgemm(model)
    if isinstance(model, Mf | TwoTower):
        yield from _check_sparse(model)
    if not isinstance(model, Mf):
        return
    needed = {"adap_tau": "cosine", "ccl": "cosine", "ultragcn": "dot"}.get(model.loss.name, model.similarity)
    if model.similarity != needed:
        yield ("model", "similarity"), f"got {model.similarity!r}, but loss {model.loss.name} needs {needed!r}"
    if isinstance(model, LightGcn) and model.norm_exponent and model.similarity != "cosine":
        yield ("model", "norm_exponent"), f"is for similarity cosine, got {model.similarity}; remove it, or set that"
    if model.loss.name == "ultragcn" and model.name != "mf":
        yield ("model", "loss", "name"), f"ultragcn stands for propagation and needs model mf, got {model.name}"
    if model.mixed_dims:
        yield from _check_mixed_dims(model)
    yield from _check_tables_kind(model)


def _check_rounded(model: TableModel) -> Iterator[Finding]:
    """What rows below float32 do not go with, which the tables refuse too."""
    rows = f"{model.table_dtype} rows"
    if model.backend != "torch":
        yield ("model", "backend"), f"got {model.backend!r}, but {rows} need the torch back end"
    if model.optimizer.name not in ROUNDED_OPTIMIZERS:
        allowed = " or ".join(ROUNDED_OPTIMIZERS)
        yield ("model", "optimizer", "name"), f"{rows} are updated by {allowed}, got {model.optimizer.name}"
    if model.optimizer.weight_decay:
        yield ("model", "optimizer", "weight_decay"), f"{rows} have none; set it to 0"
    for other in ("sparse", "mixed_dims"):
        if getattr(model, other, None) is not None:
            yield ("model", other), "its rows are float32; remove it, or table_dtype"


def _check_fbgemm(model: TableModel) -> Iterator[Finding]:
    decay = model.optimizer.weight_decay
    if decay:
        message = f"the fbgemm back end has none on the CPU, got {decay}; use 0, or backend: torch"
        yield ("model", "optimizer", "weight_decay"), message
    dims = {"dim": model.table_dim} | ({"feature_dim": model.feature_dim} if isinstance(model, TwoTower) else {})
    for name, dim in dims.items():
        if dim % 4:
            yield (
                ("model", name),
                f"the fbgemm back end needs tables of a multiple of 4 columns, got {dim}; or use torch",
            )


def _check_sparse(model: Mf | TwoTower) -> Iterator[Finding]:
    if model.sparse is None:
        return
    if model.backend != "torch":
        yield ("model", "backend"), f"got {model.backend!r}, but sparse tables need the torch back end"
    if model.optimizer.name == "lazy_adam":
        yield ("model", "optimizer", "name"), "sparse tables have no lazy_adam; use adam or an Adagrad"
    if model.sparse.method == "prune" and model.sparse.distribution != "uniform":
        yield ("model", "sparse", "distribution"), "prune keeps the same share of each table; set it to uniform"


def _check_mixed_dims(model: Mf) -> Iterator[Finding]:
    if model.backend != "torch":
        yield ("model", "backend"), f"got {model.backend!r}, but mixed dimensions need the torch back end"
    if model.loss.name in ("adap_tau", "ultragcn"):
        yield ("model", "loss", "name"), f"mixed_dims does not take {model.loss.name}, whose steps have a memory"
    if model.optimizer.name == "lazy_adam":
        message = "mixed_dims ends in sparse tables, which have no lazy_adam; use adam or an Adagrad"
        yield ("model", "optimizer", "name"), message


def _check_one_by_one(model: Mf, train: Train) -> Iterator[Finding]:
    """What a batch of one, which is LearnBPR under bpr, does not go with."""
    sparse = model.sparse is not None and model.sparse.method != "prune" and model.loss.name == "bpr"
    if train.batch_size == 1 and (model.mixed_dims or sparse):
        what = "mixed_dims takes no batches of one" if model.mixed_dims else "sparse tables are not for LearnBPR"
        yield ("train", "batch_size"), f"got 1, but {what}; use more"


def _check_tables_kind(model: Mf) -> Iterator[Finding]:
    given = {"sparse": model.sparse, "mixed_dims": model.mixed_dims, "init": model.init == "spectral"}
    asked = [key for key, value in given.items() if value]
    takes = ("mf", "lightgcn", "ngcf") + (("neumf",) if asked == ["sparse"] else ())
    if asked and model.name not in takes:
        yield ("model", asked[0]), f"only {', '.join(takes)} take it, not {model.name}; remove it"
    elif len(asked) > 1:
        yield ("model", asked[1]), f"{asked[0]} and {asked[1]} exclude each other; remove one"


def _check_two_tower(variant: Variant) -> Iterator[Finding]:
    model, train = variant.model, variant.train
    assert isinstance(model, TwoTower)
    for side, inputs in (("user", model.user), ("item", model.item)):
        if not inputs.id and inputs.features == {} and (side == "item" or model.history is None):
            yield ("model", side), f"the {side} tower has neither the id nor a feature; give it one"
    if model.sparse is not None and not (model.user.id or model.item.id):
        yield ("model", "sparse"), "is for id tables, and neither tower has one; remove it, or set model.item.id"
    if model.history is not None and not model.item.id:
        yield ("model", "history"), "a history is pooled from the items' id table; set model.item.id or history: null"
    if model.loss.name == "sampled" and model.loss.hardness:
        yield ("model", "loss", "hardness"), f"loss sampled does not take it, got {model.loss.hardness}; set it to 0"
    if model.ssl is not None and model.ssl.name == "spread_out" and model.ssl.projection != "shared":
        yield ("model", "ssl", "projection"), "spread_out has one view and no second network; set it to shared"
    yield from _check_plain_training(model.name, train)


def _check_plain_training(model: str, train: Train) -> Iterator[Finding]:
    ignored = {"gradient_clip_norm": None, "precision": "float32", "lr_decay": 1.0, "positives": "interactions"}
    for name, default in ignored.items():
        if getattr(train, name) != default:
            yield ("train", name), f"{model} does not take it, got {getattr(train, name)!r}; remove it"


def _check_semantic(compressor: Compressor, ids: SemanticIds | None, *, users: bool) -> Iterator[Finding]:
    yield from check_semantic_rows(compressor, ids)
    if compressor.name not in SEMANTIC:
        return
    rows = compressor.semantic or SemanticRows()
    if ids is None and rows.codes == "items":
        remedy = "add a section `semantic_ids`, or set compressor.semantic.codes to graph"
        yield ("compressor", "name"), f"{compressor.name} needs codes of the items: {remedy}"
    if rows.users != "graph" and not users:
        yield ("compressor", "semantic", "users"), "the model has no table of users; remove it"


def _check_sequence(model: Sasrec, variant: Variant) -> Iterator[Finding]:
    if model.content is not None:
        for key, message in check_sources(model.content.features):
            yield ("model", "content", *key), message
        plain, adam = Sasrec(), Optimizer()
        ignored: dict[tuple[str, ...], tuple[object, object]]
        ignored = {(name,): (getattr(model, name), getattr(plain, name)) for name in ("table_dtype", "backend")}
        for name in ("name", "weight_decay"):
            ignored["optimizer", name] = (getattr(model.optimizer, name), getattr(adam, name))
        for key, (got, default) in ignored.items():
            if got != default:
                message = f"model.content stands for the item table and trains by Adam, got {got!r}"
                yield ("model", *key), f"{message}; set it to {default!r}, or remove one of them"
        if variant.compressor is not None:
            message = "model.content stands for the item table, so that none is compressed; remove one of them"
            yield ("compressor",), message
    yield from check_reader(model, variant.train)


def check_algorithm(compressor: Compressor) -> Iterator[Finding]:
    """Yield a finding for an algorithm that the compressor would not use."""
    if compressor.algorithm != "louvain" and compressor.name not in CLUSTERING:
        message = f"only {', '.join(CLUSTERING)} cluster by it, not {compressor.name}; remove it"
        yield ("compressor", "algorithm"), message


def check_levels(compressor: Compressor) -> Iterator[Finding]:
    """Yield a finding for levels that the compressor does not have, or cannot divide its rows by."""
    levels, where = compressor.levels, ("compressor", "levels")
    if levels is None:
        return
    if compressor.name not in ("multi_graphhash", "residual_codes"):
        yield where, f"only multi_graphhash and residual_codes have levels, not {compressor.name}; remove `levels`"
    shares = (levels.head_share, levels.hash_share, levels.neighbour_share, levels.popularity_share)
    if sum(shares) >= 1:
        given = "{}, {}, {} and {}".format(*shares)
        what = "head_share, hash_share, neighbour_share and popularity_share"
        yield where, f"{what} must be below 1 together, got {given}"
    if levels.weights is not None and len(levels.weights) != levels.count:
        yield (*where, "weights"), f"got {len(levels.weights)} weights for {levels.count} levels; give one for each"
