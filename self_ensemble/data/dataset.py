"""For imports that are on their way to self_ensemble.data."""

from self_ensemble.data import *  # noqa: F403
