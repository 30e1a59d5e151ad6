"""REST and the web page: a thin layer over the asyncio client. Needs the extra ``web``, no torch.

``create_app`` makes the ASGI application, ``serve`` runs it in uvicorn.
"""

from pikfix.gateway.app import create_app
from pikfix.gateway.server import serve
from pikfix.gateway.settings import Settings

__all__ = ["Settings", "create_app", "serve"]
