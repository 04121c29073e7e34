"""GENIMA: joint targets drawn on camera images, and a controller that follows them. Facts: docs/genima.md."""
