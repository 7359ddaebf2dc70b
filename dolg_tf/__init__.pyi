from dolg_tf.evaluation.revisited.score import evaluate_revisited as evaluate_revisited
from dolg_tf.modeling.config import DolgConfig as DolgConfig
from dolg_tf.modeling.dolg import build_dolg as build_dolg
from dolg_tf.modeling.model_dir import load_network as load_network
from dolg_tf.retrieval.exact.search import search as search
from dolg_tf.retrieval.extract.model import load_model as load_model
from dolg_tf.retrieval.index.directory import Index as Index

__version__: str
