"""Old photo restoration via deep latent space translation (Wan et al., 2020)."""

from pikfix.systems.latent.system import SYSTEM

__all__ = ["SYSTEM"]
