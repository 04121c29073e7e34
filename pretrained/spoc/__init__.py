"""SPOC transformers: imitation models for AI2-THOR, fine-tuned by FLaRe. Facts and settings: docs/flare.md."""

from pretrained.spoc.policy import FAITHFUL, FIXED, Quirks, Spoc

__all__ = ["FAITHFUL", "FIXED", "Quirks", "Spoc"]
