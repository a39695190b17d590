"""Errors as OpenAI's clients know them: a status, and JSON that says what is wrong and where."""

import json
import re
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from controlllm.common.errors import ConfigError, ControlLLMError, DataError
from controlllm.common.registry import nearest
from controlllm.inference.engine import BusyError, ClosingError, TimeUpError, UnknownModelError
from controlllm.inference.serve.bodies import NOT_FOLLOWED

__all__ = ["ApiError", "as_api_error", "error_of_fields"]

_MOST_TOLD = 64
"""Characters of a client's own words in an error."""


_KIND = re.compile(r"\W")
"""Kinds have signs that no field has: `list[str]`, `constrained-float`."""


class ApiError(Exception):
    """What a client is told.

    Args:
        status: the HTTP status.
        message: what is wrong, and what to do.
        param: the field that is wrong.
        code: a word for programs.
        headers: of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers

    def body(self) -> dict[str, Any]:
        """The JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": self.message,
                "type": "rate_limit_error" if self.status == 429 else kind,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The reply."""
        return JSONResponse(self.body(), self.status, self.headers)


def as_api_error(error: BaseException) -> ApiError:
    """What a client is told of an error of the engine or of a prompt."""
    match error:
        case ApiError():
            return error
        case BusyError():
            return ApiError(429, str(error), code="busy", headers={"Retry-After": "1"})
        case ClosingError():
            return ApiError(503, str(error), code="closing", headers={"Retry-After": "5"})
        case TimeUpError():
            return ApiError(504, str(error), code="timeout")
        case UnknownModelError():
            return ApiError(404, str(error), "model", "model_not_found")
        case ConfigError():
            return ApiError(400, str(error), str(error).partition(":")[0].partition("=")[0])
        case DataError():
            return ApiError(400, str(error), "messages")
        case ControlLLMError():
            return ApiError(500, str(error))
        case _:
            return ApiError(500, "The server failed; its log says more.")


def error_of_fields(error: ValidationError, known: list[str]) -> ApiError:
    """The first field that is wrong, with the nearest name where there is none such."""
    # A body may have a hundred thousand wrong fields: as Python's objects they would take seconds.
    told = error.json(include_url=False, include_input=False, include_context=False)
    first, _ = json.JSONDecoder().raw_decode(told, 1)
    kind, message = first["type"], first["msg"]
    place = ".".join(str(part)[:_MOST_TOLD] for part in first["loc"] if not _is_kind(part)) or None
    if kind == "extra_forbidden":
        why = NOT_FOLLOWED.get(place) if place else None
        near = nearest(first["loc"][-1], known) if len(first["loc"]) == 1 else ""
        message = f"this server does not know this field, and does not pass over it.{near}"
        if why is not None:
            message = f"{why}; leave this field out."
    elif kind == "float_type" and place == "alpha":  # One of two kinds; told is the first.
        message = 'must be a number from 0 to 1, or such numbers by sidecar, as in {"maths": 0.4}.'
    elif kind == "json_invalid":
        return ApiError(400, "The body is not JSON.")
    return ApiError(400, message if place is None else f"{place}: {message}", place)


def _is_kind(part: int | str) -> bool:
    """Whether pydantic names one kind of a union here, not a field."""
    return isinstance(part, str) and (part in ("str", "int", "float") or bool(_KIND.search(part)))
