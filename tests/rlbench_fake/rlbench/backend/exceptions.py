"""RLBench's errors."""


class InvalidActionError(Exception):
    pass


class TaskEnvironmentError(Exception):
    pass


class BoundaryError(Exception):
    pass
