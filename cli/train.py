"""`pikfix train`: train the networks on a folder of colour photos."""

from __future__ import annotations
