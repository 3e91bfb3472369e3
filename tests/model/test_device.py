"""The device and its memory."""

import platform
import resource

import pytest
import torch

from zimage.model.device import keep_freed_memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_used_again_without_asking_the_kernel() -> None:
    keep_freed_memory(torch.device("cpu"))
    kept: list[torch.Tensor] = []
    for turn in range(20):
        if turn == 10:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        del kept[:]
        kept += [torch.ones(2**22) for _ in range(8)]  # 128 MB in 32,768 pages
    assert resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before < 32_768
