"""A small house simulator behind AI2-THOR's wire protocol: `python -m envs.thor_mini` stands in for the Unity build."""
