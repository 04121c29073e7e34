"""Proposals: plans attached to observations as hints; stored in the features, so the learner sees the same plan."""
