"""GraphHash as a stage (load, canonicalise, cluster, id maps) against scikit-network's ``fit`` of a graph in memory.

Louvain's labels are compared one by one; Leiden's by modularity and counts, since the peer's depends on ``rand()``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse
from sknetwork.clustering import Leiden, Louvain

from benchmarks.gowalla import gowalla
from benchmarks.harness import Probe, Row, finish, paired, probe
from embeddings.clustering import Algorithm, CoClustering, barber_modularity, co_cluster
from embeddings.compress import compress
from embeddings.describe import stability
from embeddings.graph import canonical, load_graph, save_graph

SWEEPS = 20
BYTES_PER_EDGE_AND_SWEEP = 16
PEER = "scikit-network"


def planted(edges: int, seed: int = 0) -> sparse.csr_array:
    """About ``edges`` edges over edges / 15 users and edges / 25 items in 500 groups; a fifth of the edges is noise."""
    generator = np.random.default_rng(seed)
    users, items, groups = max(edges // 15, 500), max(edges // 25, 500), 500
    user = generator.integers(0, users, edges)
    inside = generator.integers(0, items // groups, edges) * groups + user % groups
    item = np.where(generator.random(edges) < 0.2, generator.integers(0, items, edges), inside)
    return canonical(sparse.csr_array((np.ones(edges, dtype=np.float32), (user, item)), shape=(users, items)))


def compare(
    case: str, graph: sparse.csr_array, resolution: float, algorithm: Algorithm, repeats: int, machine: Probe
) -> Row:
    """Alternate our stage and the peer's fit; both start from the same bytes."""
    matrix = sparse.csr_matrix(graph)
    model = (Louvain if algorithm == "louvain" else Leiden)(resolution)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "graph.npz"
        save_graph(path, graph, "benchmark")

        def ours() -> CoClustering:
            loaded, _ = load_graph(path, "benchmark")
            found = co_cluster(loaded, resolution, algorithm)
            compress("graphhash", loaded, found.num_user_clusters, found.num_item_clusters, found)
            return found

        pairs = paired(ours, lambda: model.fit(matrix, force_bipartite=True), repeats=repeats)
    limit = graph.nnz * SWEEPS * BYTES_PER_EDGE_AND_SWEEP / (machine.stream_gb_s * 1e9)
    name = f"{case}, {algorithm}, resolution {resolution:g}"
    return Row.duration(name, PEER, pairs, limit=limit, **quality(graph, pairs.ours_last, model))


def quality(graph: sparse.csr_array, ours: CoClustering, theirs: Louvain) -> dict[str, Any]:
    """Counts and modularity of both, and how far our clusters depend on the node order."""
    users, items = theirs.labels_row_, theirs.labels_col_
    stable = stability(graph, ours.resolution, ours.algorithm, orders=3)
    return {
        "rows": [ours.num_user_clusters, ours.num_item_clusters],
        "peer_rows": [len(np.unique(users)), len(np.unique(items))],
        "modularity": round(ours.modularity, 5),
        "peer_modularity": round(barber_modularity(graph, users, items, ours.resolution), 5),
        "same_clusters": _same(ours.user_labels, users) and _same(ours.item_labels, items),
        "ari_over_node_orders": round(stable["users"]["ari"], 3),
        "nmi_over_node_orders": round(stable["users"]["nmi"], 3),
    }


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two labelings are one partition."""
    return len(np.unique(np.stack([a, b]), axis=1).T) == len(np.unique(a)) == len(np.unique(b))


def against_networkx(graph: sparse.csr_array, resolution: float) -> Row:
    """One pair with networkx's Louvain (unipartite null model), which takes minutes."""
    import networkx as nx

    whole = nx.bipartite.from_biadjacency_matrix(graph)
    pairs = paired(
        lambda: co_cluster(graph, resolution),
        lambda: nx.algorithms.community.louvain_communities(whole, resolution=resolution, seed=0),
        repeats=1,
        warmup=0,
    )
    labels = np.empty(sum(graph.shape), dtype=np.int64)
    for label, nodes in enumerate(pairs.theirs_last):
        labels[list(nodes)] = label
    users, items = labels[: graph.shape[0]], labels[graph.shape[0] :]
    return Row.duration(
        f"gowalla, louvain, resolution {resolution:g}",
        f"networkx {nx.__version__}",
        pairs,
        rows=[pairs.ours_last.num_user_clusters, pairs.ours_last.num_item_clusters],
        peer_rows=[len(np.unique(users)), len(np.unique(items))],
        modularity=round(pairs.ours_last.modularity, 5),
        peer_modularity=round(barber_modularity(graph, users, items, resolution), 5),
    )


def run(scale: float = 1.0, *, with_networkx: bool = False) -> int:
    """Gowalla at GraphHash's resolution and a planted graph of ``scale`` million edges."""
    repeats = 7 if scale == 1.0 else 3
    machine = probe(min(scale, 1.0))
    graph = canonical(gowalla("train"))
    headline = compare("gowalla", graph, 200.0, "louvain", repeats, machine)
    rows = [
        headline,
        compare("gowalla", graph, 200.0, "leiden", repeats, machine),
        compare(f"planted {scale:g} M edges", planted(int(1e6 * scale)), 50.0, "louvain", repeats, machine),
    ]
    if with_networkx:
        rows.append(against_networkx(graph, 200.0))
    return finish("cluster", rows, scale=scale, headline=[headline])


if __name__ == "__main__":
    raise SystemExit(run(with_networkx=True))
