# Temper with the interpreter of ai2thor. Build from the repository's root, after the base: make images
ARG BASE=temper:latest
FROM ${BASE}
RUN .venv/bin/python launch.py install ai2thor && rm -rf /root/.cache
