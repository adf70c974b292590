"""Errors as documents: ``application/problem+json`` (RFC 9457) for everything that is refused or fails.

``type`` is ``urn:tenure:problem:<code>`` and ``code`` the slug alone; a program decides by it. Members beside the
standard ones: ``field``, ``limit`` and ``remedy`` for input; ``owner``, ``retry_after_s``, ``step`` … where they help.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from tenure import errors
from tenure.facts import RequestFailed, to_log

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tenure.journal import Json

MEDIA_TYPE = "application/problem+json"


class ProblemShape(TypedDict):
    """An error. Decide by `code`; `detail` is for people and says what to do."""

    type: str
    code: str
    title: str
    status: int
    detail: str
    field: NotRequired[str]
    limit: NotRequired[str]
    remedy: NotRequired[str]
    retry_after_s: NotRequired[float]
    owner: NotRequired[dict[str, Any]]
    step: NotRequired[str]
    reason: NotRequired[str]
    permanent: NotRequired[bool]
    credential: NotRequired[dict[str, Any] | None]
    elsewhere: NotRequired[list[str]]
    reasons: NotRequired[list[str]]


@final
class Problem(Exception):
    """A request that ends with a problem document."""

    def __init__(
        self,
        status: int,
        code: str,
        title: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
        **members: Json,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self.document: dict[str, Json] = {
            "type": f"urn:tenure:problem:{code}",
            "code": code,
            "title": title,
            "status": status,
            "detail": detail,
            **members,
        }
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
            self.document["retry_after_s"] = retry_after_s

    def response(self) -> Response:
        text = json.dumps(self.document, ensure_ascii=False, separators=(",", ":"))
        return Response(text.encode(errors="replace"), self.status, self.headers, MEDIA_TYPE)


# --- our own errors -------------------------------------------------------------------------------------------------

_REFUSALS: Mapping[str, tuple[int, str, str]] = {
    "conversation-stopped": (409, "The conversation is stopped", "start it first"),
    "turn-open": (409, "A turn is open", "wait for its end, or interrupt it"),
    "key-reused": (409, "The key stands for another command", "use a new key for a new command"),
    "copy-disturbed": (409, "The copy was disturbed", "repeat it with another id or key"),
    "too-many-unsettled": (429, "Too many unsettled commands", "wait until some are settled, then send it again"),
}


def problem_of(error: errors.TenureError) -> Problem:
    """The document of an error of the tree in :mod:`tenure.errors`."""
    detail = str(error)
    match error:
        case errors.InvalidInputError(field=field, problem=problem, remedy=remedy):
            return Problem(422, "invalid-input", "Invalid input", detail, field=field, limit=problem, remedy=remedy)
        case errors.CommandRefusedError(reason=reason):
            status, title, remedy = _REFUSALS.get(reason, (409, "Refused", "read the detail"))
            return Problem(status, reason, title, detail, remedy=remedy, retry_after_s=1 if status == 429 else None)
        case errors.CredentialError(reference=reference, problem=problem, remedy=remedy):
            title = "A secret cannot be kept or read"
            return Problem(409, "credential-failed", title, detail, field=reference, limit=problem, remedy=remedy)
        case errors.UnknownConversationError():
            remedy = "check the id and the user, or create it with POST /conversations"
            return Problem(404, "unknown-conversation", "Unknown conversation", detail, remedy=remedy)
        case errors.ConversationDeletedError():
            return Problem(410, "conversation-deleted", "Deleted", detail, remedy="use a new id")
        case errors.ConversationExistsError():
            return Problem(409, "conversation-exists", "The id is taken", detail, field="id", remedy="use another id")
        case errors.ConversationOwnedElsewhereError(owner=owner):
            remedy = "send to it through any node, or take it over by force"
            title = "Another node owns it"
            return Problem(409, "conversation-owned-elsewhere", title, detail, owner=owner.as_json(), remedy=remedy)
        case _:
            return _unavailable(error)


def _unavailable(error: errors.TenureError) -> Problem:
    detail = str(error)
    match error:
        case errors.NodeUnavailableError(elsewhere=elsewhere):
            remedy = "ask another node"
            return Problem(
                503, "node-unavailable", "This node takes nothing now", detail,
                retry_after_s=1, elsewhere=list(elsewhere), remedy=remedy,
            )  # fmt: skip
        case errors.ProvisioningError(step=step, reason=reason, permanent=permanent, credential=credential):
            return Problem(
                503, "provisioning-failed", "The start failed", detail,
                retry_after_s=None if permanent else 1, step=step, reason=reason, permanent=permanent,
                credential=credential,
            )  # fmt: skip
        case errors.OwnershipLostError():
            return Problem(
                503,
                "ownership-lost",
                "It moved to another owner meanwhile",
                detail,
                retry_after_s=1,
                remedy="try again",
            )
        case errors.StoreUnavailableError():
            remedy = "repeat the same request, with the same key, on any node"
            # The driver's own words may name hosts or credentials: they belong in the log only.
            return Problem(
                503, "store-unavailable", "The store does not answer",
                f"the store did not answer in time, the outcome is unknown; {remedy}", retry_after_s=1, remedy=remedy,
            )  # fmt: skip
        case _:
            return internal()


def internal() -> Problem:
    """500: a bug of ours; the log has it."""
    return Problem(500, "internal-error", "Internal error", "this is a bug; the node's log has the trace")


# --- what the framework refuses -------------------------------------------------------------------------------------


def _limit(kind: str, message: str, context: Mapping[str, Any]) -> tuple[str, str]:
    """Limit and remedy of a refused field, from the validator's word for it."""
    match kind:
        case "extra_forbidden":
            return "is no field of this request", "leave it out"
        case "missing":
            return "is required", "give it"
        case "string_pattern_mismatch":
            return f"must match {context.get('pattern', 'its pattern')}", "correct it"
        case "string_too_long" | "string_too_short" | "less_than_equal" | "greater_than_equal":
            return message.replace("String should", "should").replace("Input should", "should"), "correct it"
        case "value_error":
            return str(context.get("error", message)), "correct it"
        case _:
            return message.replace("Input should", "should"), "send the type that /openapi.json says"


def problem_of_validation(found: Sequence[Mapping[str, Any]]) -> Problem:
    """The document of what does not fit a route's declaration; the first fault leads, all are listed (up to ten)."""
    faults: list[tuple[str, str, str]] = []
    for one in found[:10]:
        place = [str(part)[:64] for part in one["loc"][1:]] or [str(one["loc"][0])]
        limit, remedy = _limit(str(one["type"]), str(one["msg"])[:300], one.get("ctx") or {})
        faults.append((".".join(place) or '""', limit, remedy))
    field, limit, remedy = faults[0]
    listed: list[Json] = [{"field": f, "limit": x, "remedy": r} for f, x, r in faults]
    detail = f"{field}: {limit}; {remedy}"
    return Problem(
        422, "invalid-input", "Invalid input", detail, field=field, limit=limit, remedy=remedy, errors=listed
    )


def problem_of_http(status: int, headers: Mapping[str, str] | None) -> Problem:
    """The document of what no route answers."""
    match status:
        case 404:
            limit, remedy = "must be one of the routes of /openapi.json", "correct the path"
            return Problem(
                404, "not-found", "No such route", f"path: {limit}; {remedy}", field="path", limit=limit, remedy=remedy
            )
        case 405:
            allowed = (headers or {}).get("Allow", "")
            limit, remedy = f"the path takes {allowed or 'other methods'}", "use one of them"
            return Problem(
                405, "method-not-allowed", "Method not allowed", f"method: {limit}; {remedy}",
                headers=headers, field="method", limit=limit, remedy=remedy,
            )  # fmt: skip
        case _:
            limit, remedy = "the request cannot be read", "correct it"
            return Problem(
                status, "bad-request", "Bad request", f"{limit}; {remedy}",
                headers=headers, field="request", limit=limit, remedy=remedy,
            )  # fmt: skip


def answer_with_problems(app: FastAPI) -> None:
    """Make every error of the app a problem document."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, errors.TenureError)
        problem = problem_of(error)
        if problem.status >= 500:
            # A driver's words may hold the store's address and password: the type must do.
            words = type(error.__cause__ or error).__name__ if isinstance(error, errors.StoreError) else str(error)
            route = getattr(request.scope.get("route"), "path", "?")
            to_log(RequestFailed(request.method, route, problem.code, words))
        return problem.response()

    async def raised(request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        return error.response()

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return problem_of_validation(error.errors()).response()

    async def unanswered(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem_of_http(error.status_code, error.headers).response()

    async def bug(request: Request, error: Exception) -> Response:
        return internal().response()

    app.add_exception_handler(errors.TenureError, ours)
    app.add_exception_handler(Problem, raised)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unanswered)
    app.add_exception_handler(Exception, bug)
