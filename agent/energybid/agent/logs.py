"""Logs on standard error: for a person's eyes, or one JSON object a line for a collector."""

import json
import logging


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Time in seconds since the epoch, level, logger, message and, where there is one, the exception."""
        fields: dict[str, object] = {
            "time": round(record.created, 3),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields)


def configure_logs(*, as_json: bool, level: int = logging.INFO) -> None:
    """Send all logs to standard error."""
    handler = logging.StreamHandler()
    human = logging.Formatter("%(asctime)s %(levelname)-8s %(name)s: %(message)s")
    handler.setFormatter(JsonFormatter() if as_json else human)
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
