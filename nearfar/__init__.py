"""Machine-condition monitoring by sound: metrics, tables, reference embeddings and challenge files.

Import what you need from its module (`nearfar.metrics`, `nearfar.submission`). This file imports
nothing, because `nearfar.schema`, which must stay cheap, runs it too.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
