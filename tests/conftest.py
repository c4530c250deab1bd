"""Shared by all tests."""

import os
import sys

import pytest
from hypothesis import settings

# Before numpy is loaded: matrices are small, and tests run in parallel processes as it is.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# No deadlines: a busy machine is no fault of the code. Failures print what reproduces them. A commit's tests draw the
# same examples on every machine, so that what fails was changed; `HYPOTHESIS_PROFILE=explore` draws new ones.
settings.register_profile("default", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("explore", deadline=None, print_blob=True, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


FIRST = ("system", "project", "world", "powercut", "market")
"""Folders whose files take the longest: begun first, so that no process is left with one of them at the end."""


def pytest_collection_modifyitems(items):
    """Deal out the long files first; within a file and among the others all stays in order."""
    items.sort(key=lambda item: FIRST.index(name) if (name := item.path.parent.name) in FIRST else len(FIRST))


@pytest.fixture(autouse=True)
def _untraced(request):
    """Leave out of the coverage what goes through the same code thousands of times: it would cost minutes."""
    if request.node.get_closest_marker("untraced") is None:
        yield
        return
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)
