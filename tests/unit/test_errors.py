"""Every error of the package: the tree that its docstring draws, and a remedy in every message."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import tenure
from tenure import errors
from tenure.clock import Instant
from tenure.errors import Owner
from tenure.lease import Epoch, IncarnationId

OWNER = Owner("n2", IncarnationId("i"), "http://n2:8400", Epoch(7), Instant(0.0), 1.25)

MESSAGES = [
    (
        errors.ConversationOwnedElsewhereError("c", OWNER),
        [
            "conversation c",
            "node n2",
            "http://n2:8400",
            "epoch 7",
            "expires in 1.2 s",
            "send messages through any node",
        ],
    ),
    (errors.ProvisioningError("c", "provision", "no image"), ["c", "provision", "no image", "any node tries again"]),
    (
        errors.ProvisioningError("c", "configure", "no token", permanent=True),
        ["configure", "no token", "mend the cause, then start it again"],
    ),
    (
        errors.NodeUnavailableError("node n1 is draining", ("http://a", "http://b")),
        ["draining", "try http://a, http://b"],
    ),
    (errors.NodeUnavailableError("node n1 is full"), ["full", "try another node"]),
    (
        errors.OwnershipLostError("c", 7, "refused by the store"),
        ["c", "epoch 7", "refused by the store", "stop this work"],
    ),
    (errors.UnknownConversationError("c"), ["c is not known", "create it first"]),
    (errors.ConversationDeletedError("c"), ["c was deleted", "use a new id"]),
    (errors.ConversationExistsError("c"), ["c exists", "choose another id"]),
    (
        errors.InvalidInputError("limit", "is 7000, above 1000", "ask for less"),
        ["limit: is 7000, above 1000; ask for less"],
    ),
    (
        errors.CredentialError("vault:token", "is not in this conversation's vault", "put it there"),
        ["vault:token: is not in this conversation's vault; put it there"],
    ),
    (errors.CallInterrupted("t3.1", "charge"), ["charge", "t3.1", "outcome is unknown"]),
    (
        errors.CallFailed("t3.1", "charge", {"type": "ValueError", "message": "no card"}),
        ["charge", "t3.1", "ValueError: no card"],
    ),
    (
        errors.TurnDivergedError("t3", "call charge", "call refund"),
        ["t3", "call refund where the journal has call charge", "put times, chance and model replies into turn.call"],
    ),
]


def classes() -> list[type[Exception]]:
    found = [c for _, c in inspect.getmembers(errors, inspect.isclass) if c.__module__ == errors.__name__]
    return [c for c in found if issubclass(c, Exception)]


def drawn() -> dict[str, str | None]:
    """Each class of the drawing, with the one that it hangs from."""
    parents: dict[str, str | None] = {}
    line_of_descent: list[str] = []
    for branch, name in re.findall(
        r"^((?:[│ ]   )*(?:[├└]── )?)(\w+(?:Error|Interrupted|Failed))\b", str(errors.__doc__), re.M
    ):
        depth = len(branch) // 4 - 1  # the drawing is indented once
        line_of_descent[depth:] = [name]
        parents[name] = line_of_descent[depth - 1] if depth else None
    return parents


def test_the_drawn_tree_is_the_tree():
    assert drawn() == {
        c.__name__: c.__base__.__name__ if c.__base__ is not Exception else None for c in classes() if c.__base__
    }


def test_every_error_says_in_its_docstring_what_it_means():
    assert [c.__name__ for c in classes() if not c.__doc__] == []


@pytest.mark.parametrize(
    ("error", "parts"), MESSAGES, ids=lambda e: type(e).__name__ if isinstance(e, Exception) else ""
)
def test_a_message_says_what_and_what_to_do(error: Exception, parts: list[str]):
    assert [part for part in parts if part not in str(error)] == []
    assert isinstance(error, errors.TenureError)


def test_every_error_with_a_message_of_its_own_is_shown_here():
    own = {c for c in classes() if "__init__" in vars(c)} - {errors.ConversationError, errors.CommandRefusedError}
    assert own == {type(error) for error, _ in MESSAGES}


def test_errors_carry_what_a_program_needs():
    elsewhere = errors.ConversationOwnedElsewhereError("c", OWNER)
    assert (elsewhere.conversation_id, elsewhere.owner) == ("c", OWNER)
    failed = errors.ProvisioningError("c", "step", "why", permanent=True)
    assert (failed.conversation_id, failed.step, failed.reason, failed.permanent) == ("c", "step", "why", True)
    assert not errors.ProvisioningError("c", "step", "why").permanent
    assert errors.NodeUnavailableError("full", ("a",)).elsewhere == ("a",)
    lost = errors.OwnershipLostError("c", 7, "given up")
    assert (lost.conversation_id, lost.epoch, lost.why) == ("c", 7, "given up")
    refused = errors.CommandRefusedError("c", "conversation-stopped", "is stopped: start it")
    assert (refused.conversation_id, refused.reason, str(refused)) == (
        "c",
        "conversation-stopped",
        "is stopped: start it",
    )
    invalid = errors.InvalidInputError("field", "problem", "remedy")
    assert (invalid.field, invalid.problem, invalid.remedy) == ("field", "problem", "remedy")
    cut = errors.CallInterrupted("t3.1", "charge")
    assert (cut.call, cut.name) == ("t3.1", "charge")
    diverged = errors.TurnDivergedError("t3", "a", "b")
    assert (diverged.turn, diverged.expected, diverged.got) == ("t3", "a", "b")
    failed_call = errors.CallFailed("t3.1", "charge", {"type": "E"})
    assert (failed_call.call, failed_call.name, failed_call.error) == ("t3.1", "charge", {"type": "E"})


def test_an_owner_whose_lease_is_over_is_not_told_negative_seconds():
    over = errors.ConversationOwnedElsewhereError(
        "c", Owner("n", IncarnationId("i"), "a", Epoch(1), Instant(0.0), -3.0)
    )
    assert "expires in 0.0 s" in str(over)
    never = errors.ConversationOwnedElsewhereError("c", Owner("n", IncarnationId("i"), "a", Epoch(1), Instant(0.0)))
    assert "expires" not in str(never)


def test_who_else_owns_an_id_is_not_said():
    assert "user" in str(errors.ConversationExistsError("c"))
    assert str(errors.UnknownConversationError("c")) == str(errors.UnknownConversationError("c")), "one text for both"


def refusals() -> list[ast.Call]:
    """Every place of the package that refuses bad input."""
    package = Path(next(iter(tenure.__path__)))
    return [
        node
        for file in sorted(package.rglob("*.py"))
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "InvalidInputError"
    ]


def test_bad_input_is_always_refused_with_field_problem_and_remedy():
    calls = refusals()
    assert len(calls) > 5
    assert [ast.unparse(call) for call in calls if len(call.args) + len(call.keywords) != 3] == []
