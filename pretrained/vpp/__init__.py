"""VPP, the video prediction policy: what a video model foresees becomes tokens for a diffusion policy; docs/vpp.md."""
