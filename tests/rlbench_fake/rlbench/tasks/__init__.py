"""A stand-in for RLBench: the surface that is documented, on a kinematic world."""
