# `dolg` with TensorFlow for GPUs; see docs/training.md. Not tested: there was no Docker.
FROM python:3.11-slim
COPY pyproject.toml setup.py constraints.txt README.md LICENSE /src/
COPY configs /src/configs
COPY dolg_tf /src/dolg_tf
RUN pip install --no-cache-dir -c /src/constraints.txt '/src[imagenet-lite]' 'tensorflow[and-cuda]'
WORKDIR /work
ENTRYPOINT ["dolg"]
