# Temper with the interpreter of robosuite15. Build from the repository's root, after the base: make images
ARG BASE=temper:latest
FROM ${BASE}
RUN .venv/bin/python launch.py install robosuite15 && rm -rf /root/.cache
