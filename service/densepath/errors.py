"""Every error that a client can see: its code, its HTTP status and the builtin that it refines.

    DensepathError
    ├── InvalidRequestError (ValueError)      422 invalid_request
    │   ├── MalformedBodyError                400 malformed_body
    │   ├── BodyTooLargeError                 413 body_too_large
    │   ├── UnsupportedMediaTypeError         415 unsupported_media_type
    │   ├── InvalidItemError                  422 invalid_item
    │   ├── ContextLengthExceededError        422 context_length_exceeded
    │   └── InvalidPairError                  422 invalid_pair
    ├── AccessError (PermissionError)
    │   ├── InvalidApiKeyError                401 invalid_api_key
    │   └── AdminKeyRequiredError             403 admin_key_required
    ├── NotFoundError (LookupError)
    │   ├── ModelNotFoundError                404 model_not_found
    │   ├── RouteNotFoundError                404 route_not_found
    │   └── MethodNotAllowedError             405 method_not_allowed
    ├── ConflictError (RuntimeError)
    │   ├── ModelVersionMismatchError         409 model_version_mismatch
    │   └── SwapInProgressError               409 swap_in_progress
    ├── LateError (TimeoutError)
    │   ├── RequestTimeoutError               408 request_timeout
    │   └── DeadlineExceededError             504 deadline_exceeded
    ├── UnavailableError (ConnectionError)    retryable; each may carry Retry-After
    │   ├── QuotaExceededError                429 quota_exceeded
    │   ├── OverloadedError                   503 overloaded
    │   ├── DrainingError                     503 draining
    │   └── EngineUnavailableError            503 engine_unavailable
    │       └── EngineStartError              the service ends with it; no client sees it
    ├── NonFiniteScoreError (ArithmeticError) 500 non_finite_score
    └── InternalError (RuntimeError)          500 internal_error

The service raises them, the wire carries `{"error": {"message", "type", "param", "code"}}`, and the
client raises the same class again. A message says what is wrong, where, and what would be right; it
never repeats the input, a traceback, a path of the server or a key.
"""

from __future__ import annotations

from typing import ClassVar, TypedDict


class ErrorDetail(TypedDict):
    """The object inside an error answer, in OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str


class DensepathError(Exception):
    """The root of the tree. `param` names the place in the request, such as `items[3].response`."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after = retry_after  # whole seconds

    def detail(self) -> ErrorDetail:
        """The value of `error` in the answer."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}


class InvalidRequestError(DensepathError, ValueError):
    """A field is missing, has another type, is out of range, or is unknown."""

    code, status, type = "invalid_request", 422, "invalid_request_error"


class MalformedBodyError(InvalidRequestError):
    """The body is not JSON or not safetensors, is nested too deep, or has a key twice."""

    code, status = "malformed_body", 400


class BodyTooLargeError(InvalidRequestError):
    """The body is over the byte limit."""

    code, status = "body_too_large", 413


class UnsupportedMediaTypeError(InvalidRequestError):
    """The content type is not supported, or the body has a content encoding."""

    code, status = "unsupported_media_type", 415


class InvalidItemError(InvalidRequestError):
    """An item cannot be scored (empty, out of range, or with fields of two forms), or there are too many."""

    code = "invalid_item"


class ContextLengthExceededError(InvalidRequestError):
    """A sequence longer than the context length."""

    code = "context_length_exceeded"


class InvalidPairError(InvalidRequestError):
    """Two directories that are not a pair. The message has every reason."""

    code = "invalid_pair"


class AccessError(DensepathError, PermissionError):
    """The caller has no permission for this."""

    type = "authentication_error"


class InvalidApiKeyError(AccessError):
    """The service has API keys, and the request has none or a wrong one."""

    code, status = "invalid_api_key", 401


class AdminKeyRequiredError(AccessError):
    """An /admin route was called with an ordinary key, or the service has no admin key."""

    code, status = "admin_key_required", 403


class NotFoundError(DensepathError, LookupError):
    """The requested thing does not exist."""

    type = "not_found_error"


class ModelNotFoundError(NotFoundError):
    """The request names a model that is not served."""

    code, status = "model_not_found", 404


class RouteNotFoundError(NotFoundError):
    """This route does not exist."""

    code, status = "route_not_found", 404


class MethodNotAllowedError(NotFoundError):
    """The route exists, but not for this method. `allow` has the methods that it takes."""

    code, status = "method_not_allowed", 405
    allow = ""


class ConflictError(DensepathError, RuntimeError):
    """The state of the service does not allow the request."""

    type = "conflict_error"


class ModelVersionMismatchError(ConflictError):
    """The request asks for a version of the pair that is not served."""

    code, status = "model_version_mismatch", 409


class SwapInProgressError(ConflictError):
    """The pair is already being swapped."""

    code, status = "swap_in_progress", 409


class LateError(DensepathError, TimeoutError):
    """A part of the request took too long."""

    type = "timeout_error"


class RequestTimeoutError(LateError):
    """The headers or the body arrive too slowly."""

    code, status = "request_timeout", 408


class DeadlineExceededError(LateError):
    """The deadline of the request has passed, and its work is cancelled."""

    code, status = "deadline_exceeded", 504


class UnavailableError(DensepathError, ConnectionError):
    """The request cannot be served now. The same request may succeed after `retry_after` seconds."""


class QuotaExceededError(UnavailableError):
    """The token quota of this key is used up."""

    code, status, type = "quota_exceeded", 429, "rate_limit_error"


class OverloadedError(UnavailableError):
    """More tokens are queued than can be answered in time."""

    code, status = "overloaded", 503


class DrainingError(UnavailableError):
    """The service is shutting down."""

    code, status = "draining", 503


class EngineUnavailableError(UnavailableError):
    """The engine is still starting, or it has died."""

    code, status = "engine_unavailable", 503


class EngineStartError(EngineUnavailableError):
    """The engine cannot run this pair, or cannot start. The message is for the operator, not for clients."""


class NonFiniteScoreError(DensepathError, ArithmeticError):
    """A log-probability is NaN or infinite. The item gets no rewards at all."""

    code = "non_finite_score"


class InternalError(DensepathError, RuntimeError):
    """A fault of the service."""


def _leaves(cls: type[DensepathError]) -> list[type[DensepathError]]:
    return [cls, *(leaf for sub in cls.__subclasses__() for leaf in _leaves(sub))]


#: code → class. A code belongs to the first class that has it, because a subclass comes after its parent.
BY_CODE: dict[str, type[DensepathError]] = {
    **{cls.code: cls for cls in reversed(_leaves(DensepathError)) if "code" in vars(cls)},
    InternalError.code: InternalError,
}
