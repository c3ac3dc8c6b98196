"""From what a person asks for (a share, MiB, a resolution) to a number of rows."""

from __future__ import annotations

import dataclasses

from scipy import sparse

from embeddings.clustering import Algorithm, CoClustering, co_cluster, search_resolution
from embeddings.graph import degrees
from embeddings.rebalance import fit_rows


@dataclasses.dataclass(frozen=True)
class Budget:
    """What GraphHash is to meet; exactly one of ``rows`` and ``resolution`` is set.

    Attributes:
        rows: of both tables together, or of the items' where users have none, the unseen rows not counted.
        resolution: of the modularity.
        at_most: ``rows`` are a limit, as those that fit into a number of bytes; else a search may miss them by 2 %.
    """

    rows: int | None
    resolution: float | None
    at_most: bool = False


def resolve_budget(
    rows: str | int | None,
    table_mib: float | None,
    resolution: float | None,
    num_users: int,
    num_items: int,
    row_bytes: int,
) -> Budget:
    """Turn a budget of the configuration into a number of rows or a resolution.

    Args:
        rows: a number of rows, or a share of all ids such as "16%" (GraphHash's: 11,321 of Gowalla's 70,839 ids).
        table_mib: weights of both tables, their unseen rows included, in MiB; a limit.
        resolution: GraphHash's own parameter.
        num_users: all users, seen or not; 0 where they have no table.
        num_items: all items, seen or not.
        row_bytes: of one row's weights, which ``table_mib`` needs.

    Raises:
        ValueError: Not exactly one is given, it cannot be read, or it is out of range; the message has the range.
    """
    given = {"rows": rows, "table_mib": table_mib, "resolution": resolution}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) != 1:
        raise ValueError(f"a budget needs exactly one of rows, table_mib and resolution, got {given or 'none'}")
    if resolution is not None:
        if not 0 < resolution < float("inf"):
            raise ValueError(f"budget.resolution must be a positive number, got {resolution}")
        return Budget(None, float(resolution))
    ids, tables = num_users + num_items, 2 if num_users else 1
    row_mib = row_bytes / 2**20
    if table_mib is not None:
        wanted = int(table_mib / row_mib) - tables if table_mib < float("inf") else ids + 1
        asked = f"budget.table_mib={table_mib:g} ({wanted:,} rows of {row_bytes} bytes beside the {tables} unseen rows)"
    else:
        wanted = parse_rows(rows, ids)
        asked = f"budget.rows={rows!r} ({wanted:,} rows)"
    if not tables <= wanted <= ids:
        raise ValueError(
            f"{asked} is out of range: {num_users:,} users and {num_items:,} items can have rows: {tables} to {ids}, "
            f"rows: '{100 * tables / ids:.3g}%' to '100%', or table_mib: {2 * tables * row_mib:.4g} to"
            f" {(ids + tables) * row_mib:.4g}"
        )
    return Budget(wanted, None, at_most=table_mib is not None)


def parse_rows(rows: str | int | None, ids: int) -> int:
    """A number of rows, or a share such as "16%" of ``ids`` rounded to one; whether it is in range is not looked at.

    Raises:
        ValueError: It cannot be read.
    """
    if isinstance(rows, int) and not isinstance(rows, bool):
        return rows
    text = str(rows).strip()
    if text.endswith("%") and "," in text:
        raise ValueError(f"budget.rows must be a share with a decimal point, such as '1.6%', got {rows!r}")
    text = text.replace("_", "").replace(",", "")
    try:
        return round(float(text[:-1]) / 100 * ids) if text.endswith("%") else int(text)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"budget.rows must be a share such as '16%' or a number of rows, got {rows!r}") from error


def cluster_to_budget(
    graph: sparse.csr_array, budget: Budget, algorithm: Algorithm = "louvain", *, items_only: bool = False
) -> CoClustering:
    """Cluster ``graph`` at the budget's resolution, or search the resolution that meets its rows.

    Args:
        graph: train pairs [users, items].
        budget: rows or resolution.
        algorithm: "louvain" or "leiden".
        items_only: the rows are those of the items: the resolution is that of the same share of all ids, and clusters
            of items are then halved or joined to exactly the rows, or to one for each item with an interaction.

    Raises:
        ValueError: The rows cannot be met.
    """
    if budget.rows is None:
        assert budget.resolution is not None
        return co_cluster(graph, budget.resolution, algorithm)
    if not items_only:
        return search_resolution(graph, budget.rows, algorithm, at_most=budget.at_most)
    users, items = (int((side > 0).sum()) for side in degrees(graph))
    rows = min(budget.rows, items)
    found = search_resolution(graph, max(2, round(rows / max(1, items) * (users + items))), algorithm)
    labels, change = fit_rows(found.item_labels, found.item_labels, rows), rows - found.num_item_clusters
    return dataclasses.replace(found, item_labels=labels, num_item_clusters=rows, adjusted=found.adjusted + change)
