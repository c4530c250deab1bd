"""Shared by all tests."""

import os

from hypothesis import settings

# Before numpy is loaded: matrices are small, and tests run in parallel processes as it is.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No deadlines: a busy machine is no fault of the code. Failures print what reproduces them.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")
