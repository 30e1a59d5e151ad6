"""Fused operations of Pik-Fix: the correlation-softmax warp, its prologue, and SPHist.

Each public function validates its arguments, dispatches to one ``torch.library`` operator
(``torch.ops.pikfix.*``) with a CPU and a CUDA implementation, and has a naive twin in
:mod:`pikfix.kernels.naive` that states what it computes.
"""

from pikfix.kernels.center_normalize import center_normalize
from pikfix.kernels.correlation_warp import correlation_warp
from pikfix.kernels.sphist import sphist

__all__ = ["center_normalize", "correlation_warp", "sphist"]
