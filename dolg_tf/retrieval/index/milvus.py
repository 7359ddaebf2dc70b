"""Milvus, a distributed vector database, or Milvus Lite in this process, through pymilvus."""

import contextlib
import logging
import os
from collections.abc import Iterator, Sequence

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.exceptions import MilvusException

from dolg_tf.retrieval.index.engines import Row
from dolg_tf.stage.config import InputError

_TIMEOUT = 30.0  # seconds of a call
_FIELDS = ("id", "landmark", "model", "digest", "vector")
_READ = 1000  # rows that are read at a time
_BYTES = 1024  # of a text


def connect(uri: str, collection: str) -> "Collection":
    """Connects to a server, or opens a file.

    Raises:
      InputError: when it does not answer.
    """
    # They raise what they log as errors; Milvus Lite tells of calls that it does not have.
    for name in ("pymilvus", "grpc._server"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for name in ("milvus_lite", "faiss"):
        logging.getLogger(name).setLevel(logging.WARNING)
    token = os.environ.get("DOLG_ENGINE_TOKEN", "")
    with _told(uri, "is it running, and is DOLG_ENGINE_TOKEN right?"):
        return Collection(MilvusClient(uri=uri, token=token, timeout=_TIMEOUT), uri, collection)


@contextlib.contextmanager
def _told(uri: str, remedy: str) -> Iterator[None]:
    """Turns what pymilvus raises into one line."""
    try:
        yield
    except InputError:
        raise
    # Milvus Lite raises Python's own errors for a file that it cannot open.
    except (MilvusException, OSError, RuntimeError, ValueError) as error:
        message = " ".join(str(error).split())
        raise InputError(f"--uri={uri}: {message:.300}; {remedy}") from error


class Collection:
    """An `engines.Engine`."""

    def __init__(self, client: MilvusClient, uri: str, name: str):
        self._client, self._uri, self._name = client, uri, name

    def __enter__(self) -> "Collection":
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def create(self, width: int) -> None:
        with _told(self._uri, "choose another --collection"):
            if self._client.has_collection(self._name):
                self._check(width)
                self._client.load_collection(self._name)
                return
            schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_BYTES)
            for name in ("landmark", "model", "digest"):
                schema.add_field(name, DataType.VARCHAR, max_length=_BYTES)
            schema.add_field("vector", DataType.FLOAT_VECTOR, dim=width)
            index = MilvusClient.prepare_index_params()
            # The server chooses the kind of the index.
            index.add_index("vector", index_type="AUTOINDEX", metric_type="IP")
            self._client.create_collection(
                self._name, schema=schema, index_params=index, consistency_level="Strong"
            )

    def _check(self, width: int) -> None:
        fields = {
            field["name"]: field for field in self._client.describe_collection(self._name)["fields"]
        }
        found = fields.get("vector", {}).get("params", {}).get("dim")
        if set(fields) != set(_FIELDS) or int(found or 0) != width:
            raise InputError(
                f"--uri={self._uri}: {self._name} has the fields {', '.join(fields)} and vectors "
                f"of {found}; ours have {', '.join(_FIELDS)} and {width}; choose another "
                "--collection"
            )

    def digests(self) -> Iterator[tuple[str, str]]:
        with _told(self._uri, "push again"):
            pages = self._client.query_iterator(
                self._name, filter='id != ""', batch_size=_READ, output_fields=["id", "digest"]
            )
            try:
                while page := pages.next():
                    yield from ((row["id"], row["digest"]) for row in page)
            finally:
                pages.close()

    def other_model(self, model: str) -> str | None:
        with _told(self._uri, "choose another --collection"):
            found = self._client.query(
                self._name, filter=f'model != "{model}"', output_fields=["model"], limit=1
            )
        return found[0]["model"] if found else None

    def put(self, rows: Sequence[Row]) -> None:
        with _told(self._uri, "the same command continues"):
            self._client.upsert(
                self._name, data=[dict(zip(_FIELDS, row, strict=True)) for row in rows]
            )

    def drop(self, ids: Sequence[str]) -> None:
        with _told(self._uri, "the same command continues"):
            self._client.delete(self._name, ids=list(ids))

    def count(self) -> int:
        with _told(self._uri, "is it running?"):
            if not self._client.has_collection(self._name):
                return 0
            self._client.load_collection(self._name)
            found = self._client.query(self._name, filter="", output_fields=["count(*)"])
            return int(found[0]["count(*)"])

    def search(self, queries: np.ndarray, k: int) -> list[list[tuple[str, str, float]]]:
        with _told(self._uri, "is the collection loaded?"):
            found = self._client.search(
                self._name,
                data=np.asarray(queries, np.float32).tolist(),
                limit=k,
                anns_field="vector",
                search_params={"metric_type": "IP"},
                output_fields=["landmark"],
            )
        return [
            [(hit["id"], hit["entity"]["landmark"], float(hit["distance"])) for hit in hits]
            for hits in found
        ]
