# Temper with the interpreter of libero. Build from the repository's root, after the base: make images
ARG BASE=temper:latest
FROM ${BASE}
RUN .venv/bin/python launch.py install libero && rm -rf /root/.cache
