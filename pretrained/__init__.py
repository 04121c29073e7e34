"""Policies, their training by imitation, and their checkpoints."""

import os

# Torch asks for large pages wherever two megabytes or more are allocated, if it finds this before its first tensor.
# Activations are fresh memory in every minibatch, and their page faults took almost half of a CPU learner's time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
