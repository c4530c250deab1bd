"""Shared by all tests."""

from hypothesis import settings

# No deadlines: a busy machine is no fault of the code. Failures print what reproduces them.
settings.register_profile("default", deadline=None, print_blob=True)
settings.load_profile("default")
