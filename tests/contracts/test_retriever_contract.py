"""What every retriever must do: rank a checkerboard right, agree with itself, and come back from disk unchanged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.sparse import csr_array

from embeddings.id_map import IdMap
from embeddings.semantic_id.codes import SemanticCodes
from embeddings.sparsity import Schedule, Sparsity
from embeddings.tables import OptimizerSpec, Table, build_table
from recsys.checkpoint import Model, load_model, save_model
from recsys.knowledge_graph import KnowledgeGraph
from recsys.losses import Constraints, Loss, LossName
from recsys.mlp import Mlp
from recsys.models.bspm import fit_bspm
from recsys.models.cheby_cf import fit_cheby_cf
from recsys.models.content_items import ContentItems
from recsys.models.dense_head import DenseHead, DenseSettings
from recsys.models.ease import Ease
from recsys.models.ensemble import StandardisedEnsemble, VectorEnsemble
from recsys.models.gf_cf import fit_gf_cf
from recsys.models.graph_model import GraphModel
from recsys.models.hstu import HstuEncoder
from recsys.models.ials import Ials, IalsSettings
from recsys.models.item_knn import ItemKnn
from recsys.models.kgat import Kgat
from recsys.models.lightgcn import LightGcn
from recsys.models.mf import MatrixFactorization, Similarity
from recsys.models.neumf import NeuMf
from recsys.models.ngcf import Ngcf
from recsys.models.popularity import Popularity
from recsys.models.rpg import Rpg
from recsys.models.sasrec import SasRecEncoder
from recsys.models.sequence_model import Encoder, SequenceModel
from recsys.models.simplex import Pooling, SimpleX
from recsys.models.slim import Slim
from recsys.models.t5 import T5Shape
from recsys.models.tiger import Reading, Tiger
from recsys.models.transr import TransR
from recsys.retriever import Retriever, VectorRetriever
from recsys.rng import generator
from recsys.rpg_trainer import fit_rpg
from recsys.samplers import NegativeSampling
from recsys.self_supervision import SelfSupervision, SslName
from recsys.sequence_losses import SequenceLoss
from recsys.sequence_trainer import ReaderSettings, SequenceData, SequenceSettings, fit_sequences
from recsys.sequences import Sequences
from recsys.settings import FitSettings
from recsys.tiger_trainer import TigerSettings, fit_tiger
from recsys.tower_objective import Candidates, TowerSettings
from recsys.tower_training import TowerData, fit_two_tower
from recsys.trainer import fit
from tests.recsys import tower_fixture

USERS, ITEMS = 40, 30


def checkerboard() -> tuple[csr_array, np.ndarray]:
    """Users like the items of their colour; a third of the likes is hidden. Returns train and the whole truth."""
    truth = np.add.outer(np.arange(USERS), np.arange(ITEMS)) % 2 == 0
    hidden = np.random.default_rng(0).random(truth.shape) < 1 / 3
    return csr_array((truth & ~hidden).astype(np.float32)), truth


def full_map(count: int) -> IdMap:
    return IdMap(np.arange(count)[:, None], count + 1, count, "full")


def paired_map(count: int) -> IdMap:
    """Four ids of one colour share a row: a compression that keeps what matters."""
    return IdMap(
        (np.arange(count) // 8 * 2 + np.arange(count) % 2)[:, None], count // 8 * 2 + 3, count // 8 * 2 + 2, "pair"
    )


def mf(
    loss: LossName, similarity: Similarity, make_map: Callable[[int], IdMap] = full_map, size: int = 64,
    sparsity: Sparsity | None = None,
) -> Model:  # fmt: skip
    spec = OptimizerSpec("adagrad", lr=0.3, weight_decay=0.01 if similarity == "dot" else 0.0)
    users, items = (
        build_table(make_map(n), 4, optimizer=spec, init_std=0.1, generator=generator(0, side), sparsity=sparsity)
        for side, n in (("users", USERS), ("items", ITEMS))
    )
    model = MatrixFactorization(users, items, similarity=similarity)
    shared = size > 1
    settings = FitSettings(
        Loss(loss, 0.5, logq=loss == "in_batch_softmax", gamma=0.1, constraints=Constraints((1.0, 1.0, 1.0, 1.0), 1.0)),
        NegativeSampling(count=16 if shared else 1, shared=shared),
        batch_size=size,
        epochs=40,
    )
    fit(model, checkerboard()[0], None, settings, seed=0)
    return model


def graph_model(
    loss: LossName, similarity: Similarity, make_map: Callable[[int], IdMap] = full_map, ssl: SslName | None = None,
    kind: str = "lightgcn", sparsity: Sparsity | None = None,
) -> Model:  # fmt: skip
    users, items = (
        build_table(
            make_map(n),
            4,
            optimizer=OptimizerSpec("adam", lr=0.03),
            init_std=0.1,
            generator=generator(0, side),
            sparsity=sparsity,
        )
        for side, n in (("users", USERS), ("items", ITEMS))
    )
    term = SelfSupervision(ssl, weight=0.02) if ssl else None
    if kind == "ngcf":
        model: GraphModel = Ngcf(
            users, items, layers=2, similarity=similarity, l2=1e-4, ssl=term, generator=generator(0, "mixers")
        )
    else:
        model = LightGcn(users, items, layers=2, similarity=similarity, l2=1e-4, ssl=term)
    settings = FitSettings(
        Loss(loss, temperature=0.5, logq=loss == "in_batch_softmax", gamma=0.1, negative_weight=16.0),
        NegativeSampling(count=16),
        batch_size=64,
        epochs=20,
    )
    fit(model, checkerboard()[0], None, settings, seed=0)
    return model


def kgat(make_map: Callable[[int], IdMap] = full_map) -> Model:
    """Items know their colour, one entity each, by relation 0."""
    triples = np.stack([np.arange(ITEMS), np.zeros(ITEMS, np.int64), ITEMS + np.arange(ITEMS) % 2], axis=1)
    spec = OptimizerSpec("adam", lr=0.03)
    users, items, entities = (
        build_table(id_map, 4, optimizer=spec, init_std=0.1, generator=generator(0, id_map.num_ids))
        for id_map in (make_map(USERS), make_map(ITEMS), IdMap.identity(2))
    )
    knowledge = TransR(entities, KnowledgeGraph(ITEMS, ITEMS + 2, 1, triples), generator=generator(0, "transr"))
    model = Kgat(users, items, knowledge, widths=(4, 4), l2=1e-4, dropout=0.0, generator=generator(0, "mixers"))
    settings = FitSettings(Loss("bpr"), NegativeSampling(count=16), batch_size=64, epochs=20)
    fit(model, checkerboard()[0], None, settings, seed=0)
    return model


def simplex(pooling: Pooling, make_map: Callable[[int], IdMap] = full_map) -> Model:
    spec = OptimizerSpec("adam", lr=0.03)
    users, items = (
        build_table(make_map(n), 4, optimizer=spec, init_std=0.1, generator=generator(0, side))
        for side, n in (("users", USERS), ("items", ITEMS))
    )
    model = SimpleX(users, items, user_weight=0.5, pooling=pooling, generator=generator(0, "mixers"))
    settings = FitSettings(
        Loss("sampled_softmax", temperature=0.5), NegativeSampling(count=16), batch_size=64, epochs=40
    )
    fit(model, checkerboard()[0], None, settings, seed=0)
    return model


def neumf(make_map: Callable[[int], IdMap] = full_map) -> Model:
    spec = OptimizerSpec("adam", lr=0.03)
    users, items = (
        build_table(make_map(n), 8, optimizer=spec, init_std=0.1, generator=generator(0, side))
        for side, n in (("users", USERS), ("items", ITEMS))
    )
    model = NeuMf(users, items, widths=(8, 4), generator=generator(0, "perceptron"))
    settings = FitSettings(Loss("log_loss"), NegativeSampling(count=4, shared=False), batch_size=64, epochs=15)
    fit(model, checkerboard()[0], None, settings, seed=0)
    return model


def two_tower(loss: str, make_map: Callable[[int], IdMap] = full_map, history: int = 0) -> Model:
    users, items = tower_fixture.ids_only(USERS), tower_fixture.described(ITEMS)
    model = tower_fixture.two_tower(users, items, history_length=history, hidden=(16,), item_map=make_map(ITEMS))
    settings = TowerSettings(Candidates(loss, count=16), batch_size=64, epochs=20, item_dropout=0.1)  # type: ignore[arg-type]
    fit_two_tower(model, TowerData(tower_fixture.histories(checkerboard()[0])), settings, seed=0)
    return model


def sequence_model(
    encoder: Callable[..., Encoder], make_map: Callable[[int], IdMap] = full_map, *, content: bool = False
) -> SequenceModel:
    """The likes of a user in a random order: what comes next has the colour of what came before."""
    sequences = shuffled()
    draws = generator(0, "init")
    items: Table | ContentItems
    if content:
        described = np.random.default_rng(2).standard_normal((ITEMS, 6), dtype=np.float32)
        described[:, 0] = np.arange(ITEMS) % 2
        items = ContentItems(torch.from_numpy(described), Mlp((6, 8), draws), lr=0.03)
    else:
        items = build_table(make_map(ITEMS), 8, optimizer=OptimizerSpec("adam", lr=0.03), init_std=0.1, generator=draws)
    reader = encoder(8, layers=1, max_length=20, dropout=0.4, generator=draws)
    model = SequenceModel(items, reader, sequences, similarity="cosine")
    loss = SequenceLoss("sampled_softmax", 0.3)
    settings = SequenceSettings(loss=loss, negatives=NegativeSampling(count=16), lr=0.01, batch_size=10, epochs=20)
    fit_sequences(model, SequenceData(sequences, None, sequences), settings, seed=0)
    return model


def shuffled() -> Sequences:
    """The checkerboard's interactions of each user in a random order."""
    train = checkerboard()[0]
    users = np.repeat(np.arange(USERS), np.diff(train.indptr))
    order = np.random.default_rng(1).permutation(len(users))
    return Sequences.of_events(users[order], train.indices.astype(np.int64)[order], USERS)


def tiger(candidates: int | None = None) -> Model:
    """The first code of an item is its colour, and so is the content that a dense head ranks ``candidates`` by."""
    sequences = shuffled()
    items = np.arange(ITEMS)
    codes = SemanticCodes(np.column_stack([items % 2, items // 2]).astype(np.int32), (2, ITEMS // 2))
    shape = T5Shape(dim=16, layers=1, heads=2, head_dim=8, inner=16)
    dense = None
    if candidates is not None:
        network = Mlp((2, 16), generator(0, "dense"))
        dense = DenseHead(torch.eye(2)[items % 2], network, DenseSettings(candidates=candidates), max_items=5)
    model = Tiger(codes, sequences, shape, Reading(5), dropout=0.0, dense=dense, generator=generator(0, "init"))
    settings = TigerSettings(lr=0.02, warmup_steps=10, batch_size=200, epochs=30)
    fit_tiger(model, SequenceData(sequences, None, sequences), settings, seed=0)
    return model


def rpg() -> Model:
    """The first digit of an item is its colour, the other one its own."""
    sequences = shuffled()
    items = np.arange(ITEMS)
    codes = SemanticCodes(np.column_stack([items % 2, items // 2]).astype(np.int32), (2, ITEMS // 2))
    draws = generator(0, "init")
    tokens = build_table(
        IdMap.identity(sum(codes.widths)), 8, optimizer=OptimizerSpec("adam", lr=0.03), init_std=0.1, generator=draws
    )
    encoder = SasRecEncoder(8, layers=1, max_length=20, dropout=0.2, generator=draws)
    model = Rpg(codes, tokens, encoder, sequences, temperature=0.1)
    fit_rpg(model, SequenceData(sequences, None, sequences), ReaderSettings(lr=0.01, batch_size=10, epochs=20), seed=0)
    return model


RETRIEVERS: dict[str, Callable[[], Model]] = {
    "item_knn": lambda: ItemKnn.fit(checkerboard()[0]),
    "ease": lambda: Ease.fit(checkerboard()[0], l2=5.0),
    "ease-low-rank": lambda: Ease.fit(checkerboard()[0], l2=5.0, method="low_rank", rank=4),
    "slim": lambda: Slim.fit(checkerboard()[0], l1=0.1, l2=5.0),
    "gf_cf": lambda: fit_gf_cf(checkerboard()[0], rank=4),
    "cheby_cf": lambda: fit_cheby_cf(checkerboard()[0], rank=4),
    "bspm": lambda: fit_bspm(checkerboard()[0], rank=4, sharpening=1.0),
    "mf-bpr": lambda: mf("bpr", "dot"),
    "mf-learn-bpr": lambda: mf("bpr", "dot", size=1),
    "mf-sampled-softmax": lambda: mf("sampled_softmax", "cosine"),
    "mf-in-batch-softmax": lambda: mf("in_batch_softmax", "cosine"),
    "mf-directau": lambda: mf("directau", "cosine"),
    "mf-bsl": lambda: mf("bsl", "cosine"),
    "mf-adap-tau": lambda: mf("adap_tau", "cosine"),
    "mf-ccl": lambda: mf("ccl", "cosine"),
    "mf-ultragcn": lambda: mf("ultragcn", "dot"),
    "ials": lambda: Ials.fit(checkerboard()[0], IalsSettings(dim=4, iterations=10, regularization=0.1)),
    **{
        f"lightgcn-{loss}": lambda loss=loss: graph_model(loss, "cosine")
        for loss in get_args(LossName)
        if loss not in ("log_loss", "ultragcn")  # a cosine is no log-odds
    },
    **{
        f"lightgcn-{ssl}": lambda ssl=ssl: graph_model("sampled_softmax", "cosine", ssl=ssl)
        for ssl in get_args(SslName)
    },
    "lightgcn-compressed": lambda: graph_model("bpr", "dot", paired_map),
    "ngcf": lambda: graph_model("bpr", "dot", kind="ngcf"),
    "ngcf-compressed": lambda: graph_model("sampled_softmax", "cosine", paired_map, "simgcl", kind="ngcf"),
    "kgat": kgat,
    "kgat-compressed": lambda: kgat(paired_map),
    "simplex-mean": lambda: simplex("mean"),
    "simplex-attention": lambda: simplex("attention"),
    "simplex-compressed": lambda: simplex("mean", paired_map),
    "neumf": neumf,
    "neumf-compressed": lambda: neumf(paired_map),
    "lightgcn-log-loss": lambda: graph_model("log_loss", "dot"),
    **{f"two-tower-{loss}": lambda loss=loss: two_tower(loss) for loss in ("in_batch", "sampled", "mixed")},
    "two-tower-history-compressed": lambda: two_tower("mixed", paired_map, history=10),
    "sasrec": lambda: sequence_model(SasRecEncoder),
    "sasrec-compressed": lambda: sequence_model(SasRecEncoder, paired_map),
    "hstu": lambda: sequence_model(HstuEncoder),
    "tiger": tiger,
    "liger": lambda: tiger(candidates=20),
    "rpg": rpg,
    "sasrec-content": lambda: sequence_model(SasRecEncoder, content=True),
    "ensemble": lambda: VectorEnsemble(sequence_model(SasRecEncoder), mf("sampled_softmax", "cosine"), 0.3),
    "ensemble-standardised": lambda: StandardisedEnsemble(
        fit_gf_cf(checkerboard()[0], rank=4), mf("sampled_softmax", "cosine"), 0.3
    ),
    "mf-compressed": lambda: mf("sampled_softmax", "cosine", paired_map),
    "mf-sparse": lambda: mf("sampled_softmax", "cosine", sparsity=Sparsity(0.75, Schedule(5, 400))),
    "lightgcn-sparse": lambda: graph_model("bpr", "cosine", sparsity=Sparsity(0.5, Schedule(5, 200))),
}
EVERY = {"popularity": lambda: Popularity.fit(checkerboard()[0]), **RETRIEVERS}


@pytest.fixture(scope="module")
def trained() -> dict[str, Model]:
    return {}


def model_of(trained: dict[str, Model], name: str) -> Model:
    if name not in trained:
        trained[name] = EVERY[name]()
    return trained[name]


@pytest.mark.parametrize("name", RETRIEVERS)
def test_the_checkerboard_is_ranked_right(trained: dict[str, Model], name: str) -> None:
    """Every item of the user's colour, the hidden ones too, scores above every item of the other colour."""
    truth = checkerboard()[1]
    scores = model_of(trained, name).scores(np.arange(USERS)).numpy()
    worst_liked = np.where(truth, scores, np.inf).min(1)
    best_other = np.where(truth, -np.inf, scores).max(1)
    assert (worst_liked > best_other).all(), f"{(worst_liked <= best_other).sum()} users are ranked wrong"


def test_popularity_cannot_rank_the_checkerboard_but_ranks_by_count(trained: dict[str, Model]) -> None:
    train, _ = checkerboard()
    scores = model_of(trained, "popularity").scores(np.arange(USERS)).numpy()
    assert np.array_equal(scores, np.broadcast_to(train.toarray().sum(0), scores.shape))


@pytest.mark.parametrize("name", EVERY)
def test_scores_do_not_depend_on_the_batch(trained: dict[str, Model], name: str) -> None:
    model = model_of(trained, name)
    assert isinstance(model, Retriever)
    assert (model.num_users, model.num_items) == (USERS, ITEMS)
    whole = model.scores(np.arange(USERS))
    assert whole.shape == (USERS, ITEMS) and whole.dtype == torch.float32 and not whole.requires_grad
    users = np.array([7, 3, 7, 39])
    assert torch.allclose(model.scores(users), whole[users], atol=1e-6)
    assert model.scores(users[:0]).shape == (0, ITEMS)


WITHOUT_VECTORS = {
    "item_knn",
    "ease",
    "ease-low-rank",
    "slim",
    "gf_cf",
    "cheby_cf",
    "bspm",
    "neumf",
    "neumf-compressed",
    "tiger",
    "liger",
    "rpg",
    "ensemble-standardised",
}


@pytest.mark.parametrize("name", [name for name in EVERY if name not in WITHOUT_VECTORS])
def test_vectors_give_the_scores(trained: dict[str, Model], name: str) -> None:
    model = model_of(trained, name)
    assert isinstance(model, VectorRetriever)
    users = np.array([5, 0, 31])
    parts = [model.item_vectors(range(0, 11)), model.item_vectors(range(11, ITEMS))]
    assert torch.allclose(model.user_vectors(users) @ torch.cat(parts).T, model.scores(users), atol=1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_a_saved_model_scores_the_same_bits(trained: dict[str, Model], name: str, tmp_path: Path) -> None:
    model = model_of(trained, name)
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert type(again) is type(model)
    assert torch.equal(again.scores(np.arange(USERS)), model.scores(np.arange(USERS)))
