"""Tables of embedding rows: one seam, several back ends that agree numerically."""

from embeddings.tables.batch import look_up, step_all
from embeddings.tables.build import Backend, build_table
from embeddings.tables.spec import OptimizerSpec, TableBytes
from embeddings.tables.table import Bags, Table

__all__ = ["Backend", "Bags", "OptimizerSpec", "Table", "TableBytes", "build_table", "look_up", "step_all"]
