"""The file that MLflow stores with a model and executes to load it: raw user ids in, recommendations out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipelines.catalogue import Catalogue
from recsys.topk import exact_top_k


class Recommender(PythonModel):
    """Top-k items of a checkpoint for raw user ids, without the items that the user has already."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the artefacts: safetensors, Parquet and JSON only."""
        from recsys.checkpoint import load_model

        self.catalogue = Catalogue.load(Path(context.artifacts["catalogue"]))
        self.model = load_model(Path(context.artifacts["checkpoint"]))
        self.users = {raw: index for index, raw in enumerate(self.catalogue.user_ids)}

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Recommend.

        Args:
            context: unused.
            model_input: a frame with a column ``user_id``, raw ids as text or integers.
            params: ``k``, how many items (default 10).

        Returns:
            One row per user: ``user_id``, and the lists ``items`` (raw ids), ``titles`` and ``scores``, best first;
            a user the model does not know gets empty lists.
        """
        raw = [str(user) for user in model_input["user_id"]]
        known = np.array([self.users[user] for user in raw if user in self.users], dtype=np.int64)
        top = exact_top_k(self.model, known, int((params or {}).get("k", 10)), self.catalogue.seen)
        lists = iter(zip(top.items, top.scores, strict=True))
        return pd.DataFrame([self._row(user, *next(lists)) if user in self.users else self._row(user) for user in raw])

    def _row(self, user: str, items: Any = (), scores: Any = ()) -> dict[str, Any]:
        found = [(int(item), float(score)) for item, score in zip(items, scores, strict=True) if item >= 0]
        return {
            "user_id": user,
            "items": [self.catalogue.item_ids[item] for item, _ in found],
            "titles": [self.catalogue.titles[item] for item, _ in found],
            "scores": [score for _, score in found],
        }


set_model(Recommender())
