"""cuda-python's runtime API, under the one name that all its releases share here.

Imported late, by `engines.factory`: this is the only module that imports cuda-python.
"""

from __future__ import annotations

from importlib import import_module

try:
    from cuda.bindings import runtime
except ModuleNotFoundError as error:
    if error.name not in ("cuda.bindings", "cuda.bindings.runtime"):
        raise
    # cuda-python before 12.8
    runtime = import_module("cuda.cudart")

__all__ = ["runtime"]
