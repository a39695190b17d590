"""The application: the guard, the routes, the page."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import Scope

from controlllm.common.errors import ControlLLMError
from controlllm.inference.engine import Engine
from controlllm.inference.serve.browser import page_router
from controlllm.inference.serve.errors import ApiError, as_api_error
from controlllm.inference.serve.guard import Guard
from controlllm.inference.serve.routes import openai_router
from controlllm.inference.serve.service import Service
from controlllm.inference.serve.settings import ServeSettings

__all__ = ["make_app"]


def make_app(engine: Engine, settings: ServeSettings | None = None) -> FastAPI:
    """The application over one engine; `app.state.service` is what its routes work with.

    Args:
        engine: writes the texts; it is closed when the application ends.
        settings: who may ask, and for how much.

    Raises:
        ConfigError: names or alphas that cannot be.
    """
    service = Service.of(engine, settings or ServeSettings())

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        try:
            await service.prompts.start()
            yield
        finally:
            await engine.close()
            service.prompts.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=life)
    app.state.service = service
    app.include_router(openai_router(service))
    app.include_router(page_router(service))
    _add_own_routes(app, service)
    for kind in (ApiError, ControlLLMError):
        app.add_exception_handler(kind, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_middleware(Guard, service=service, routes=lambda scope: _route(app, scope))
    return app


def _add_own_routes(app: FastAPI, service: Service) -> None:
    @app.get("/health")
    async def health() -> JSONResponse:
        engine = service.engine.health()
        works = engine.works and not service.draining
        told = {
            "status": "ok" if works else "closing" if service.draining else "broken",
            "running": engine.running,
            "waiting": engine.waiting,
        }
        return JSONResponse(told, 200 if works else 503)

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")


async def _tell(request: HttpRequest, error: Exception) -> Response:
    return as_api_error(error).response()


async def _tell_http(request: HttpRequest, error: Exception) -> Response:
    """No such path, or no such method."""
    assert isinstance(error, HTTPException)
    message = {404: "There is no such path.", 405: "This path takes another method."}
    told = ApiError(error.status_code, message.get(error.status_code, "Refused."))
    response = told.response()
    response.headers.update(error.headers or {})
    return response


def _route(app: FastAPI, scope: Scope) -> str:
    """The pattern of the route that took a request: what a client wrote is not told."""
    route = scope.get("route")
    return str(getattr(route, "path", "other"))
