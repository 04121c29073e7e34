"""PyRep's errors."""


class IKError(Exception):
    pass


class ConfigurationPathError(Exception):
    pass
