"""CALVIN's play table on PyBullet, from the benchmark's own robot, table and block files."""
