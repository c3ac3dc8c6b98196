"""The file that MLflow stores with a ranker and executes to load it: raw rows in, probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipelines.ranking.scoring import LOG_ODDS, PROBABILITY, Scorer


class RowScorer(PythonModel):
    """Log-odds and probabilities of rows that have the fields of the training data."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the artefacts: safetensors, Parquet, JSON and YAML only."""
        names = ("checkpoint", "fields", "config")
        self.scorer = Scorer.load(*(Path(context.artifacts[name]) for name in names))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Score.

        Args:
            context: unused.
            model_input: a frame with the columns of the training data; what train never had is unseen.
            params: unused.

        Returns:
            One row for each, with ``log_odds`` and ``probability``.
        """
        scored = self.scorer.score(pl.from_pandas(model_input))
        return pd.DataFrame({name: scored[name].to_numpy() for name in (LOG_ODDS, PROBABILITY)})


set_model(RowScorer())
