"""faiss, an optional package: k-means, and approximate indexes."""

import logging

from dolg_tf.stage import installed


def import_faiss(what: str):
    """Returns the faiss module.

    Args:
      what: needs it, for the error.

    Raises:
      InputError: when it is not installed.
    """
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    installed.need("faiss", what, "faiss")
    import faiss

    return faiss
