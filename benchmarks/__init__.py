"""Side-by-side measurements against peers; importing this package fixes the number of threads for both sides.

It imports nothing but the standard library, so that workers in a peer's own environment can import it too.
"""

import os

THREADS = 2

for _name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
    os.environ.setdefault(f"{_name}_NUM_THREADS", str(THREADS))
os.environ.setdefault("POLARS_MAX_THREADS", str(THREADS))
