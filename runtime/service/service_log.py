"""The log of a service: a JSON object on each line of standard error."""

from __future__ import annotations

import datetime
import json
import logging
import sys
from typing import Any

from runtime import log

_PLAIN = {*vars(logging.makeLogRecord({})), "message", "color_message", "taskName"}  # what every record has


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object: time, level, message, and what was given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        time = datetime.datetime.fromtimestamp(record.created, datetime.timezone.utc)
        line: dict[str, Any] = {
            "time": time.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage().strip(),
            **{name: value for name, value in vars(record).items() if name not in _PLAIN},
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class _StandardError(logging.Handler):
    """Prints on what standard error is at that moment."""

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stderr is not None:
            print(self.format(record), file=sys.stderr, flush=True)


HANDLER = _StandardError()
"""Prints the log; also what the HTTP server has to say."""
HANDLER.setFormatter(JsonLines())

LOG = log.LOG.getChild("serve")
"""What a service has to say. `--log-level` sets its level, as that of the logger `mar`."""
LOG.propagate = False
if not LOG.handlers:
    LOG.addHandler(HANDLER)
