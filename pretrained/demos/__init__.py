"""Demonstrations: reading, writing and collecting them."""

from pretrained.demos.files import resolve, stored_spec
from pretrained.demos.libero import DemoWriter, Recorded
from pretrained.demos.windows import Demos

__all__ = ["DemoWriter", "Demos", "Recorded", "resolve", "stored_spec"]
