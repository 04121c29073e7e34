"""Official checkpoints of other systems to and from Temper's."""
