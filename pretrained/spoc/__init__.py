"""SPOC transformers: imitation models for AI2-THOR, fine-tuned by FLaRe. Facts and settings: docs/flare.md."""

from pretrained.spoc.policy import Spoc
from pretrained.spoc.quirks import FAITHFUL, FIXED, Quirks

__all__ = ["FAITHFUL", "FIXED", "Quirks", "Spoc"]
