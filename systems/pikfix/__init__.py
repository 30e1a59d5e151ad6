"""Pik-Fix (Xu et al., WACV 2023): restoration, tone, similarity to references, colorization."""

from pikfix.systems.pikfix.system import SYSTEM

__all__ = ["SYSTEM"]
