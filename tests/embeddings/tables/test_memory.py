import platform
import resource
from pathlib import Path

import pytest
import torch

from embeddings.tables.memory import HUGE_PAGE, empty_pages, keep_freed_memory

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_large_memory_is_writable_and_zeroed() -> None:
    assert float(empty_pages((1 << 20,)).zero_().add_(1).sum()) == 1 << 20


@pytest.mark.skipif(not HUGE_PAGES.exists() or "[never]" in HUGE_PAGES.read_text(), reason="no huge pages here")
def test_large_memory_is_in_huge_pages() -> None:
    def huge_kib() -> int:
        lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("AnonHugePages"))

    before = huge_kib()
    pages = empty_pages((16 * HUGE_PAGE // 4,)).zero_()
    assert huge_kib() - before >= 8 * HUGE_PAGE // 1024
    assert pages.nbytes == 16 * HUGE_PAGE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_freed_memory_is_used_again() -> None:
    assert keep_freed_memory()

    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(20):
            torch.empty(1 << 20).zero_()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    faults()
    assert faults() < 1024  # one array alone has 1024 pages
