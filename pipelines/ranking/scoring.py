"""What a trained ranker gives to raw rows: log-odds and probabilities, from a run directory alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from pipelines.config_ranking import RankingExperiment
from pipelines.errors import DataError, did_you_mean
from pipelines.ranking.encode import BLOCK, Encoding, encode_rows
from pipelines.ranking.files import TEXT, readable, scan_text
from pipelines.ranking.sources import joined, numeric_kinds
from pipelines.run_directory import default_variant, find_run
from pipelines.run_files import RunFiles, VariantResult
from recsys.event_batch import Events
from recsys.rankers.checkpoint import load_ranker
from recsys.rankers.ranker import Ranker

PROBABILITY, LOG_ODDS = "probability", "log_odds"
DIN = "din"
READERS: dict[str, Callable[[Path], pl.DataFrame]] = {
    **dict.fromkeys(TEXT, lambda path: scan_text([path]).collect()),
    ".parquet": lambda path: pl.read_parquet(path, glob=False),
    ".jsonl": lambda path: pl.read_ndjson(path, infer_schema_length=None),
}
"""Rows of a file; CSV and TSV as the text that they are, so that no type is guessed."""


@dataclasses.dataclass(frozen=True)
class Scorer:
    """A ranker and what turns raw rows into its input.

    Attributes:
        ranker: in evaluation mode.
        encoding: vocabularies and scales that were fitted on train.
        experiment: that it was trained in.
    """

    ranker: Ranker
    encoding: Encoding
    experiment: RankingExperiment

    @classmethod
    def open(cls, run: Path, variant: str | None = None) -> Scorer:
        """A variant of a ranking run, by name; None for the one with the best validation metric.

        Raises:
            DataError: The run is of another kind, has no such variant, or one that looks at histories.
        """
        files = RunFiles(find_run(run))
        config = files.ranking_config()
        if config is None:
            raise DataError(f"{files.directory} ranks a catalogue and scores no rows; use recsys recommend")
        if config.task != "ctr":
            raise DataError(f"{files.directory} is a run with task: {config.task}; score takes those with task: ctr")
        found = _find(files, variant)
        if found.model == DIN:
            raise DataError(
                f"{found.name} of {files.directory} is a {DIN}, which also looks at what a user had before, and rows do"
                " not tell that; choose another variant with --variant"
            )
        return cls.load(files.checkpoint_dir(found.name, found.seed), files.directory / "fields", files.config_file)

    @classmethod
    def load(cls, checkpoint: Path, fields: Path, config: Path) -> Scorer:
        """A scorer from its parts: a saved ranker, an :class:`Encoding`, and the resolved configuration of the run."""
        experiment = RankingExperiment.model_validate(yaml.safe_load(config.read_text(encoding="utf-8")))
        return cls(load_ranker(checkpoint), Encoding.load(fields), experiment)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that rows must have, those of joined files left out."""
        kinds = numeric_kinds(self.experiment.dataset)
        names = dict.fromkeys([*self.encoding.vocabularies, *kinds])
        return tuple(name for name in names if name not in joined(self.experiment.dataset))

    def log_odds(self, rows: pl.DataFrame) -> np.ndarray:
        """Float32 [n]. A value that train does not have is unseen, a missing one is missing, as in training.

        Raises:
            DataError: A column is missing, or a number is none, infinite or too far from train's.
        """
        for name in self.columns:
            if name not in rows.columns:
                raise DataError(f"the rows have no column {name!r}; {did_you_mean(name, rows.columns)}")
        parts = []
        for first in range(0, len(rows), BLOCK):
            ids, dense = encode_rows(rows[first : first + BLOCK], self.encoding, self.experiment.dataset, first)
            labels = np.zeros(len(ids), np.uint8)
            parts.append(self.ranker.scores(Events(ids, dense, labels, tuple(self.encoding.vocabularies))))
        scores = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            raise DataError(f"the log-odds of row {bad[0]} are {scores[bad[0]]}; its numbers are too far from train's")
        return scores

    def score(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows with the columns ``log_odds`` and ``probability`` (float64) added, or replaced."""
        log_odds = self.log_odds(rows).astype(np.float64)
        probability = np.exp(-np.logaddexp(0.0, -log_odds))
        return rows.with_columns(pl.Series(LOG_ODDS, log_odds), pl.Series(PROBABILITY, probability))


def score_file(run: Path, source: Path, *, variant: str | None = None, out: Path | None = None) -> str:
    """Score the rows of a file.

    Args:
        run: directory of a ranking run.
        source: .csv, .tsv, .parquet or .jsonl with the columns of the training data; a label is not needed.
        variant: by name; None for the best on validation.
        out: .csv or .parquet to write; None for CSV as the answer.

    Returns:
        The path of ``out``, or the scored rows as CSV.

    Raises:
        DataError: A file or column is not as it must be.
    """
    if source.suffix not in READERS or not source.is_file():
        raise DataError(f"rows to score are an existing .csv, .tsv, .parquet or .jsonl file, got {source}")
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise DataError(f"scored rows are written as .csv or .parquet, got {out.name!r}")
    scorer = Scorer.open(run, variant)
    with readable([source]):
        rows = READERS[source.suffix](source)
    scored = scorer.score(rows)
    if out is None:
        return scored.write_csv().rstrip("\n")
    scored.write_csv(out) if out.suffix == ".csv" else scored.write_parquet(out)
    return str(out)


def _find(files: RunFiles, name: str | None) -> VariantResult:
    if name is None:
        return default_variant(files)
    variants = files.metrics().variants
    for variant in variants:
        if name in (variant.name, f"{variant.name}-s{variant.seed}"):
            return variant
    names = list(dict.fromkeys(variant.name for variant in variants))
    raise DataError(f"{files.directory} has no variant {name!r}; {did_you_mean(name, names)}")
