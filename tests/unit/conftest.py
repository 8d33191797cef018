"""Settings for property tests: a busy machine must not make one fail."""

from hypothesis import settings

settings.register_profile("postrio", deadline=None)
settings.load_profile("postrio")
