"""Exit codes of every command (README, "Exit codes"); the systemd unit reads them."""

OK = 0
FAILED = 1
"""What was asked could not be done; the message says why."""
USAGE = 2
"""Wrong arguments or a wrong configuration file; every fault is listed. Restarting does not help."""
NOT_VERIFIED = 3
"""Evidence does not check: a signature, hash, proof or sequence is wrong."""
JOURNAL = 4
"""The journal can not be read or written."""
INTERRUPTED = 130
"""Stopped by Ctrl-C."""
