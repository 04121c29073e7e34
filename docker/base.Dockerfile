# Temper with its default simulators on the CPU. Build from the repository's root:
#   docker build -f docker/base.Dockerfile -t temper .
#   docker run --rm --shm-size=2g -v "$PWD/runs:/temper/runs" temper doctor
FROM python:3.11-slim-bookworm
RUN apt-get update && apt-get install -y --no-install-recommends \
        make gcc libc6-dev git wget libosmesa6 libegl1 libegl-mesa0 libgl1-mesa-dri libgl1 libopengl0 \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /temper
# Requirements first: a change of code does not install everything again.
COPY Makefile requirements.txt requirements-nodeps.txt requirements-dev.txt constraints.txt ./
RUN make .venv/.stamp
COPY . .
# Clusters start Ray by its name, in a login shell, which forgets PATH, and KubeRay asks by wget whether it is well. Jobs
# find `python` where Ray was started.
RUN ln -s /temper/.venv/bin/ray /usr/local/bin/ray \
    && echo 'PATH=/temper/.venv/bin:$PATH' > /etc/profile.d/temper.sh
ENV PATH=/temper/.venv/bin:$PATH
ENV MUJOCO_GL=osmesa PYTHONUNBUFFERED=1
ENTRYPOINT [".venv/bin/python", "launch.py"]
CMD ["--help"]
