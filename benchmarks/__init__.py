"""Measurements: each program prints a table and writes results.json and a section of RESULTS.md."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as launch.py does; see there
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
