"""What a browser gets: the page, what it must know of the server, and the comparison.

The page is the folder `page/`: HTML, styles and modules without a build step. All of it is read
when the server starts; names are looked up in that table, and are never paths.
"""

from importlib.resources import files

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response

from controlllm.inference.serve.comparing import add_comparison
from controlllm.inference.serve.errors import ApiError
from controlllm.inference.serve.service import Service

__all__ = ["page_files", "page_router"]

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def page_files() -> dict[str, tuple[bytes, str]]:
    """Contents and media type of each file of the page, by name."""
    folder = files(__package__) / "page"
    return {
        file.name: (file.read_bytes(), _TYPES[kind])
        for file in folder.iterdir()
        if (kind := file.name.rpartition(".")[2]) in _TYPES
    }


def page_router(service: Service) -> APIRouter:
    """`/`, `/page/NAME`, `/controlllm/info` and `/controlllm/compare`, over one service."""
    router = APIRouter()
    table = page_files()

    @router.get("/")
    async def index() -> Response:
        return _sent("index.html")

    @router.get("/page/{name}")
    async def part(name: str) -> Response:
        if name not in table:
            raise ApiError(404, "The page has no such file.")
        return _sent(name)

    def _sent(name: str) -> Response:
        content, kind = table[name]
        return Response(content, media_type=kind)

    @router.get("/controlllm/info")
    async def info() -> JSONResponse:
        limits = service.settings.limits
        return JSONResponse(
            {
                "models": service.table.names,
                "sidecars": [*service.table.sidecars],
                "has_dial": service.table.has_dial,
                "can_chat": service.prompts.can_chat,
                "context": service.engine.context,
                "limits": {"max_tokens": limits.max_tokens, "prompt_tokens": limits.prompt_tokens},
            }
        )

    add_comparison(router, service)
    return router
