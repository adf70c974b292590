"""What it means: the record, the status, the fold of a journal, and the plan for a new owner.

All of it is pure. The node reads a journal, folds it, asks :func:`plan` what is to be done, and does it. The same
functions judge a batch before it is sent (a batch that the fold refuses is never written) and any journal afterwards.
"""

from tenure.conversation.folding import REPLAY, RETIRED, Fold, OpenCall, OpenTurn, advance, checked, fold, settlement
from tenure.conversation.planning import (
    LOST_LIMIT,
    Plan,
    Then,
    end_turn,
    interrupt_calls,
    overtaken,
    plan,
    refuse_urgent,
    settle_urgent,
    turn_id,
)
from tenure.conversation.record import Record, Settle, Status, TurnState, status
from tenure.conversation.recording import (
    FORMAT,
    Export,
    Recording,
    chained,
    closing,
    is_own,
    meaning_of,
    past_of,
    read_events,
    read_export,
    recorded,
)
from tenure.conversation.timeline import TELLING, Ended, RefusedWrite, TenureSpan, timeline

__all__ = [
    "FORMAT",
    "LOST_LIMIT",
    "REPLAY",
    "RETIRED",
    "TELLING",
    "Ended",
    "Export",
    "Fold",
    "OpenCall",
    "OpenTurn",
    "Plan",
    "Record",
    "Recording",
    "RefusedWrite",
    "Settle",
    "Status",
    "TenureSpan",
    "Then",
    "TurnState",
    "advance",
    "chained",
    "checked",
    "closing",
    "end_turn",
    "fold",
    "interrupt_calls",
    "is_own",
    "meaning_of",
    "overtaken",
    "past_of",
    "plan",
    "read_events",
    "read_export",
    "recorded",
    "refuse_urgent",
    "settle_urgent",
    "settlement",
    "status",
    "timeline",
    "turn_id",
]
