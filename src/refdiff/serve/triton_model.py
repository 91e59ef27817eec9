"""The model that Triton's Python backend runs: the pipeline over the tensors of `tensors`.

`model.py` of the repository derives a class from `PythonModel`, because only Triton's own process has the
module `triton_python_backend_utils`. Needs Triton 23.10 or later.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from refdiff.contracts.bundle import read_manifest
from refdiff.contracts.options import BackendOptions, RunOptions
from refdiff.engines.interruption import CancelledError
from refdiff.errors import BundleError, InputError, RefdiffError
from refdiff.runtime.confidence import withhold
from refdiff.serve.tensors import INPUTS, OUTPUT_OF, OUTPUTS, Tensor, read_question, row_of, stack_rows
from refdiff.serve.worker import opener, self_test


class PythonModel:
    """The pipeline of one bundle, in a process of Triton's that runs one `execute` at a time."""

    pb_utils: ClassVar[Any]
    """Triton's module `triton_python_backend_utils`."""
    folder: ClassVar[Path]
    """The folder of model.py."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the bundle and test it on its golden tensors.

        Args:
            args: of Triton; `model_config` is the configuration as JSON.

        Raises:
            TritonModelException: the configuration is of another refdiff, the bundle cannot be loaded, or it
                does not give its golden answers here.
        """
        self._request: Any = None
        try:
            config = json.loads(args["model_config"])
            _check_tensors(config)
            self._segmenter = self._open(config.get("parameters", {}))
        except RefdiffError as error:
            raise self.pb_utils.TritonModelException(str(error)) from error

    def _open(self, parameters: Mapping[str, Mapping[str, str]]) -> Any:
        values = {name: each["string_value"] for name, each in parameters.items()}
        bundle = self.folder / values["bundle"]  # an absolute path stays as it is
        threads = values.get("threads")
        backend = BackendOptions(name=values["backend"], threads=None if threads is None else int(threads))
        options = RunOptions(
            variant=values["variant"],
            mode=values["mode"],
            allow_random_weights=values["allow_random_weights"] == "true",
            expect=values["sha256"],
        )
        if read_manifest(bundle).sha256 != options.expect:
            raise BundleError(
                f"{bundle} is another bundle than the repository was written for; write it again, or put the "
                "right one there"
            )
        self_test(bundle, backend)
        return opener(bundle, options, backend)(self._check_cancelled)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return the response to each request, in their order; a failed one has an error of its own."""
        return [self._respond(request) for request in requests]

    def finalize(self) -> None:
        """Free the engines."""
        self._segmenter.close()

    def _respond(self, request: Any) -> Any:
        codes, self._request = self.pb_utils.TritonError, request
        try:
            return self.pb_utils.InferenceResponse(output_tensors=self._answer(request))
        except CancelledError:
            return self._failed("the request was cancelled", codes.CANCELLED)
        except InputError as error:
            return self._failed(str(error), codes.INVALID_ARG)
        except Exception as error:
            self.pb_utils.Logger.log_error(f"refdiff: {type(error).__name__}: {error}")
            return self._failed("the model failed; the server's log has the reason", codes.INTERNAL)
        finally:
            self._request = None

    def _failed(self, message: str, code: Any) -> Any:
        error = self.pb_utils.TritonError(message, code)
        return self.pb_utils.InferenceResponse(output_tensors=[], error=error)

    def _answer(self, request: Any) -> list[Any]:
        self._check_cancelled("")
        sent = {each.name: self.pb_utils.get_input_tensor_by_name(request, each.name) for each in INPUTS}
        arrays = {name: tensor.as_numpy() for name, tensor in sent.items() if tensor is not None}
        question, wanted = read_question(arrays), set(request.requested_output_names())
        names = [name for name in OUTPUT_OF if name in wanted]
        phrases = [each.text for each in question.prompts]
        self._segmenter.check_phrases(phrases)
        answers = self._segmenter.segment_each(self._segmenter.encode(question.image), phrases)
        rows = [
            row_of(withhold(answer, prompt.min_confidence), names, len(phrases))
            for answer, prompt in zip(answers, question.prompts, strict=True)
        ]
        return [self.pb_utils.Tensor(name, array) for name, array in stack_rows(rows, names).items()]

    def _check_cancelled(self, _: str) -> None:
        if self._request is not None and self._request.is_cancelled():
            raise CancelledError


def _check_tensors(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that was written for other tensors than this refdiff has."""
    for side, tensors in (("input", INPUTS), ("output", OUTPUTS)):
        found = [(each["name"], each["data_type"], _dims(each["dims"])) for each in config.get(side, ())]
        expected = [_described(each) for each in tensors]
        if found != expected:
            raise InputError(
                f"the repository's {side}s are not those of the installed refdiff; write it again with: "
                "refdiff triton, of the version that the server has"
            )


def _described(tensor: Tensor) -> tuple[str, str, list[int]]:
    described = tensor.config()
    return described["name"], described["data_type"], described["dims"]


def _dims(dims: Sequence[int | str]) -> list[int]:
    """Return dimensions as numbers; protobuf's own JSON has them as texts."""
    return [int(size) for size in dims]
