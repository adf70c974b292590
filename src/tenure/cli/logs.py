"""Logs of a node, on standard error: one record a line, for people or as JSON; never a secret."""

from __future__ import annotations

import json
import logging
import sys
from typing import TYPE_CHECKING, Any, final

from tenure.clock import Instant

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tenure.vault import Mask, Veil

LEVELS = ("debug", "info", "warning", "error")

_OF_EVERY_RECORD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}


def log_to_stderr(mask: Mask | Veil, *, level: str = "info", as_json: bool = False) -> None:
    """Send what this process logs to standard error and nowhere else: ours from `level` on, others' warnings."""
    out = logging.StreamHandler(sys.stderr)
    out.setFormatter(JsonLines(mask) if as_json else Lines(mask))
    logging.basicConfig(level=logging.WARNING, handlers=[out], force=True)
    logging.getLogger("tenure").setLevel(level.upper())
    logging.captureWarnings(capture=True)


@final
class Lines(logging.Formatter):
    """``2026-01-31T09:30:00.250Z info    tenure.node: registered node=a incarnation=…``; what follows is indented."""

    def __init__(self, mask: Mask | Veil) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        first, *more = record.getMessage().splitlines() or [""]
        if record.exc_info:
            more += self.formatException(record.exc_info).splitlines()
        named = [f"{name}={_word(value)}" for name, value in details(record).items()]
        head = f"{Instant(record.created).isoformat()} {record.levelname.lower():7} {record.name}: {first}"
        return self._mask.text("\n    ".join([" ".join([head, *named]), *more]))


@final
class JsonLines(logging.Formatter):
    """One JSON object a line: at, level, logger, message, whatever was said beside it, and a traceback as ``error``."""

    def __init__(self, mask: Mask | Veil) -> None:
        super().__init__()
        self._mask = mask

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "at": Instant(record.created).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **details(record),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return self._mask.text(json.dumps(told, ensure_ascii=False, default=str))


def details(record: logging.LogRecord) -> Mapping[str, Any]:
    """What was said beside the message: ``extra={…}``."""
    return {name: value for name, value in vars(record).items() if name not in _OF_EVERY_RECORD}


def _word(value: object) -> str:
    text = str(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text, ensure_ascii=False)
