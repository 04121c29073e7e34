"""Environments. `envs.make("toy/reach:red")` gives a gymnasium.Env, `envs.make_vector(id, n)` a VectorEnv.

Importing this package imports nothing: adapters run in child processes that may lack gymnasium.
"""
