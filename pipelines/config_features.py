"""How columns of users and items become features of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipelines.config_section import Section


class CategoricalEncoding(Section):
    """A vocabulary of the values that training saw."""

    kind: Literal["categorical"] = "categorical"
    min_count: int = Field(default=1, ge=1, description="rows that a value needs; rarer ones are unseen")
    max_size: int | None = Field(default=None, ge=1, description="values kept, the most frequent first")
    on_overflow: Literal["error", "unseen"] = Field(default="unseen", description="when there are more than max_size")


class ListEncoding(CategoricalEncoding):
    """The same for a column of lists."""

    kind: Literal["list"] = "list"  # type: ignore[assignment]


class NumericEncoding(Section):
    """A number: to mean 0 and deviation 1, its sign * ln(1 + |x|) likewise, or the number of its quantile."""

    kind: Literal["numeric"] = "numeric"
    transform: Literal["standard", "log", "quantiles"] = "standard"
    buckets: int = Field(default=16, ge=2, description="for quantiles; fewer where values tie")


class TextEncoding(Section):
    """Words hashed into buckets, weighted by TF-IDF, rows of length one."""

    kind: Literal["text"] = "text"
    buckets: int = Field(default=4096, ge=2)
    max_words: int = Field(default=64, ge=1, description="of a row, the heaviest first")


Encoding = Annotated[CategoricalEncoding | ListEncoding | NumericEncoding | TextEncoding, Field(discriminator="kind")]
