"""FLIP (Gao et al. 2024): plans in pictures, by models of flow, of video that follows the flow, and of value."""
