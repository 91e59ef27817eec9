"""A stand-in for `triton_python_backend_utils`, the module that only Triton's Python backend has.

Names, signatures and errors are those of the real one (python_backend, `src/resources` and `pb_stub.cc`): a
tensor refuses arrays of numpy's text type, a response lists tensors, and tensors that were not asked for are
dropped from it.
"""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np


class TritonModelException(Exception):
    """Ends the loading of a model, or a call of `execute`."""


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message, code=INTERNAL):
        self._message, self._code = message, code

    def message(self):
        return self._message

    def code(self):
        return self._code


class Tensor:
    def __init__(self, name, numpy_array):
        if not isinstance(numpy_array, np.ndarray) or numpy_array.dtype.kind in "UV":
            raise TritonModelException("Tensor dtype used for numpy_array is not support by Python backend.")
        self._name, self._array = name, numpy_array

    def name(self):
        return self._name

    def as_numpy(self):
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors, error=None):
        if type(output_tensors) is not list:
            raise TritonModelException('"output_tensors" must be a list.')
        self._tensors, self._error = output_tensors, error

    def output_tensors(self):
        return self._tensors

    def has_error(self):
        return self._error is not None

    def error(self):
        return self._error


class InferenceRequest:
    def __init__(self, tensors, outputs, cancelled=lambda: False):
        self._tensors = [Tensor(name, array) for name, array in tensors.items()]
        self._outputs = list(outputs)
        self._cancelled = cancelled

    def inputs(self):
        return self._tensors

    def requested_output_names(self):
        return self._outputs

    def is_cancelled(self):
        return self._cancelled()


class Logger:
    lines: ClassVar[list[str]] = []

    @classmethod
    def log_error(cls, message):
        cls.lines.append(message)


def get_input_tensor_by_name(request, name):
    return next((each for each in request.inputs() if each.name() == name), None)


def args_of(config, folder):
    """What Triton gives `initialize`: texts, the configuration as JSON."""
    return {
        "model_config": json.dumps(config),
        "model_instance_kind": "MODEL",
        "model_instance_device_id": "0",
        "model_repository": str(folder.parent),
        "model_version": folder.name,
        "model_name": config["name"],
    }
