# A SavedModel and its server in one image; see docs/serving.md. Not tested: there was no Docker.
FROM tensorflow/serving
ARG MODEL
COPY ${MODEL} /models/${MODEL}
ENV MODEL_NAME=${MODEL}
