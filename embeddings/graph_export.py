"""The graph for eyes and other programs: networkx and GraphML. The only file that imports networkx."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import networkx as nx
import numpy as np
from scipy import sparse

from embeddings import atomic
from embeddings.graph import canonical, co_occurrence, degrees
from embeddings.id_map import IntArray

MAX_EDGES = 500_000


def to_networkx(
    graph: sparse.csr_array,
    user_names: Sequence[str],
    item_names: Sequence[str],
    *,
    max_edges: int = MAX_EDGES,
    sample_users: int | None = None,
    generator: np.random.Generator | None = None,
) -> nx.Graph:
    """A networkx graph with nodes ``("user", i)`` and ``("item", j)`` that have ``bipartite``, ``name``, ``degree``.

    Args:
        graph: train pairs [users, items].
        user_names: name of every user.
        item_names: name of every item.
        max_edges: refuse more, since networkx takes about 0.5 KB for an edge.
        sample_users: export this many users drawn at random with all their items; None for all users and items.
        generator: draws the sample; needed with ``sample_users``.

    Returns:
        A new graph; ``degree`` is that in the whole graph.

    Raises:
        ValueError: Names and nodes differ in number, or there are too many edges.
    """
    graph = canonical(graph)
    for side, names, count in (("user", user_names, graph.shape[0]), ("item", item_names, graph.shape[1])):
        if len(names) != count:
            raise ValueError(f"the graph has {count:,} {side}s, but {len(names):,} {side} names were given")
    users: IntArray = np.arange(graph.shape[0])
    items: IntArray = np.arange(graph.shape[1])
    if sample_users is not None:
        if generator is None or sample_users < 1:
            raise ValueError(f"a sample needs sample_users >= 1 and a generator, got {sample_users} and {generator}")
        users = np.sort(generator.permutation(graph.shape[0])[:sample_users])
        items = np.unique(graph[users].indices)
    edges = int(np.diff(graph.indptr)[users].sum())
    _require_few(edges, max_edges)
    result = nx.Graph()
    all_degrees = degrees(graph)
    for part, (kind, ids, names) in enumerate((("user", users, user_names), ("item", items, item_names))):
        result.add_nodes_from(
            ((kind, i), {"bipartite": part, "name": names[i], "degree": int(all_degrees[part][i])})
            for i in ids.tolist()
        )
    for user in users.tolist():
        neighbours = graph.indices[graph.indptr[user] : graph.indptr[user + 1]].tolist()
        result.add_edges_from((("user", user), ("item", item)) for item in neighbours)
    return result


def items_to_networkx(graph: sparse.csr_array, item_names: Sequence[str], *, max_edges: int = MAX_EDGES) -> nx.Graph:
    """Nodes ``("item", j)`` with ``name`` and ``degree``, and edges whose ``weight`` is how many users have both items.

    Args:
        graph: train pairs [users, items]; items that nobody has are left out.
        item_names: name of every item.
        max_edges: refuse more.

    Raises:
        ValueError: There are too many edges.
    """
    graph = canonical(graph)
    counts = sparse.triu(co_occurrence(graph)).tocoo()
    _require_few(counts.nnz, max_edges)
    users_of = degrees(graph)[1].tolist()
    result = nx.Graph()
    result.add_nodes_from(
        (("item", i), {"name": item_names[i], "degree": count}) for i, count in enumerate(users_of) if count
    )
    edges = zip(counts.row.tolist(), counts.col.tolist(), counts.data.astype(np.int64).tolist(), strict=True)
    result.add_weighted_edges_from((("item", a), ("item", b), weight) for a, b, weight in edges)
    return result


def _require_few(edges: int, max_edges: int) -> None:
    if edges > max_edges:
        raise ValueError(
            f"{edges:,} edges are too many for networkx (limit {max_edges:,}); sample users (sample_users, or"
            " --sample-users of recsys export), or raise max_edges"
        )


def write_graphml(path: Path, graph: nx.Graph) -> None:
    """Write what the functions above made as GraphML, atomically, with nodes called ``user:0``, ``item:0``, ...

    Control characters that XML 1.0 forbids are replaced in texts.
    """
    named = nx.relabel_nodes(graph, {node: f"{node[0]}:{node[1]}" for node in graph})
    for _, attributes in named.nodes(data=True):
        attributes.update({key: _xml_text(value) for key, value in attributes.items() if isinstance(value, str)})
    buffer = io.BytesIO()
    nx.write_graphml_xml(named, buffer)
    atomic.write_bytes(path, buffer.getvalue())


def _xml_text(text: str) -> str:
    return "".join(c if c >= " " and c not in "\ufffe\uffff" else "\ufffd" for c in text)


def strongest_paths(
    edges: Iterable[tuple[int, int, float]], source: int, target: int, count: int
) -> list[tuple[list[int], float]]:
    """The simple paths from ``source`` to ``target`` whose product of weights is largest.

    Args:
        edges: directed (from, to, weight in (0, 1]); of parallel ones the strongest counts.
        source: a node.
        target: another node.
        count: paths at most.

    Returns:
        (nodes, product of the weights), strongest first; empty where there is no path.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from((source, target))
    for start, stop, weight in edges:
        cost = -math.log(weight)
        if not graph.has_edge(start, stop) or cost < graph[start][stop]["cost"]:
            graph.add_edge(start, stop, cost=cost)
    if not nx.has_path(graph, source, target):
        return []
    paths = itertools.islice(nx.shortest_simple_paths(graph, source, target, weight="cost"), count)
    return [(list(path), math.exp(-nx.path_weight(graph, path, "cost"))) for path in paths]
