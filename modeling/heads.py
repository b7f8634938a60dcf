"""Heads that train an embedding by telling apart proxy classes of normal clips: the registry.

A head gives logits and, with labels, a loss. All compute in float32, whatever the precision around
them, take integer and soft labels, and give a clip the same logits whatever its batch.
"""

from collections.abc import Callable

from .adacos_heads import AdaCosHead, AdaProjHead, SubclusterAdaCosHead
from .arcface_head import ArcFaceHead
from .contrastive_head import ContrastiveHead
from .head_base import Head, HeadOutput

HEADS: dict[str, Callable[..., Head]] = {  # name in AsdConfig -> constructor
    "arcface": ArcFaceHead,
    "adacos": AdaCosHead,
    "subcluster_adacos": SubclusterAdaCosHead,
    "adaproj": AdaProjHead,
    "os_scl": ContrastiveHead,
}

__all__ = [
    "HEADS",
    "AdaCosHead",
    "AdaProjHead",
    "ArcFaceHead",
    "ContrastiveHead",
    "Head",
    "HeadOutput",
    "SubclusterAdaCosHead",
]
