"""The beam search of ``transformers``, in its own environment.

Arguments: a .safetensors with weights, ``tokens`` int64 [users, S] (0 pads), ``paths`` int64 [items, L]; the sizes.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import T5Config, T5ForConditionalGeneration

from benchmarks import THREADS
from benchmarks.worker import serve


def _model(weights: dict[str, torch.Tensor], dim: int, layers: int, heads: int, head_dim: int, inner: int) -> Any:
    config = T5Config(
        vocab_size=len(weights["shared.weight"]), d_model=dim, d_kv=head_dim, d_ff=inner, num_layers=layers,
        num_decoder_layers=layers, num_heads=heads, feed_forward_proj="relu", tie_word_embeddings=True,
        pad_token_id=0, decoder_start_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(weights, strict=False)
    tied = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}
    if set(missing) - tied or unexpected:
        raise ValueError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    return model


def main() -> None:
    """Load the job named on the command line and answer ``run`` requests."""
    torch.set_num_threads(THREADS)
    weights = load_file(sys.argv[1])
    tokens, paths = weights.pop("tokens"), weights.pop("paths")
    model = _model(weights, *map(int, sys.argv[2:]))
    found: dict[tuple[int, ...], set[int]] = defaultdict(set)
    for path in paths.tolist():
        for level, token in enumerate(path):
            found[tuple(path[:level])].add(token)
    following = {prefix: sorted(after) for prefix, after in found.items()}

    def answer(request: dict[str, Any]) -> dict[str, Any]:
        lists, scores = [], []
        start = time.perf_counter()
        for some in tokens.split(request["batch"]):
            with torch.no_grad():
                out = model.generate(
                    some,
                    attention_mask=(some != 0).long(),
                    num_beams=request["beam"],
                    num_return_sequences=request["k"],
                    max_new_tokens=paths.shape[1],
                    do_sample=False,
                    length_penalty=0.0,
                    prefix_allowed_tokens_fn=lambda _, written: following[tuple(written[1:].tolist())],
                    return_dict_in_generate=True,
                    output_scores=True,
                )
            lists.append(out.sequences[:, 1:].view(len(some), request["k"], -1))
            scores.append(out.sequences_scores.view(len(some), -1))
        seconds = time.perf_counter() - start
        np.savez(request["out"], paths=torch.cat(lists).numpy(), scores=torch.cat(scores).numpy())
        return {"seconds": seconds}

    serve(answer)


if __name__ == "__main__":
    main()
