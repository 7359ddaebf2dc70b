# `dolg` with TensorFlow for GPUs; see docs/training.md. Not tested: there was no Docker.
FROM python:3.11-slim
COPY . /src
RUN pip install --no-cache-dir 'tensorflow[and-cuda]' /src -c /src/constraints.txt
ENTRYPOINT ["dolg"]
