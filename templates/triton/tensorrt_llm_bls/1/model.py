"""The BLS model: one request through preprocessing, engine and postprocessing, as Python instead of an ensemble.

Beyond the ensemble it can detokenise the whole text so far for each response (accumulate_tokens). Every request has
a thread of its own, so one instance serves many at once. The siblings are found by this model's own name: a
repository of several variants calls them tensorrt_llm_bls__X, preprocessing__X and so on.
"""

from __future__ import annotations

import itertools
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import triton_python_backend_utils as pb
from cancelling import Canceller
from fields import SERVER_OWN, engine_inputs, preprocessing_inputs, refuse_unset
from tokenizing import flag, parameter

FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
THREADS = 256  # requests at once; the engine's batch and queue are the real limits


class TritonPythonModel:
    """Answers through response senders, in either transaction policy."""

    def initialize(self, args: dict[str, str]) -> None:
        """Find the siblings."""
        config = json.loads(args["model_config"])
        self._decoupled = pb.using_decoupled_model_transaction_policy(config)
        self._accumulate = flag(config, "accumulate_tokens", default=False)
        suffix = args["model_name"].removeprefix("tensorrt_llm_bls")
        engine = parameter(config, "tensorrt_llm_model_name") or "tensorrt_llm"
        self._engine = f"{engine}{suffix}" if engine == "tensorrt_llm" else engine
        self._preprocessing, self._postprocessing = f"preprocessing{suffix}", f"postprocessing{suffix}"
        self._config = config
        names = [output["name"] for output in config["output"] if output["name"] != "text_output"]
        self._outputs = ["output_ids", "sequence_length", *names]
        # Up to 0.13 postprocessing takes and gives back all of these; 0.14, which brought sequence_index, ended that.
        self._passing = () if "sequence_index" in names else tuple(names)
        self._numbers = itertools.count()
        self._threads = ThreadPoolExecutor(THREADS)
        self._canceller = Canceller(self._stop)

    def execute(self, requests: list[Any]) -> None:
        """Hand every request to a thread."""
        for request in requests:
            self._threads.submit(self._serve, request, request.get_response_sender())

    def finalize(self) -> None:
        """Wait for the threads; their requests end with the engine's."""
        self._canceller.close()
        self._threads.shutdown()

    def _serve(self, request: Any, sender: Any) -> None:
        """Answer one request, whatever happens."""
        try:
            self._forward(request, sender)
        except Exception as mistake:  # noqa: BLE001 - whatever happens, the request is answered
            sender.send(pb.InferenceResponse(error=pb.TritonError(str(mistake))), flags=FINAL)

    def _forward(self, request: Any, sender: Any) -> None:
        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        refuse_unset(tensors, self._config)
        parameters = json.loads(request.parameters() or "{}")
        prepared = self._call(self._preprocessing, preprocessing_inputs(tensors), parameters)
        name = f"{self._engine}-{os.getpid()}-{next(self._numbers)}"
        with self._canceller.watching(name, sender.is_cancelled):
            last = self._pass_on(self._infer(name, engine_inputs(tensors, prepared)), sender)
        if last is None:
            sender.send(flags=FINAL)
        else:
            sender.send(last, flags=FINAL)

    def _pass_on(self, responses: Any, sender: Any) -> Any:
        """Detokenise and send; the one answer of a model that is not decoupled is returned, to be sent as the last."""
        streams: dict[object, Stream] = {}
        for response in responses:
            tensors = checked(response)
            if "output_ids" in tensors:
                stream = streams.setdefault(Stream.key(tensors), Stream(accumulate=self._accumulate))
                answer = self._detokenised(stream.next(tensors))
                if not self._decoupled:
                    return answer
                sender.send(answer)
        return None

    def _detokenised(self, tensors: dict[str, Any]) -> Any:
        ids, lengths = tensors.pop("output_ids"), tensors.pop("sequence_length")
        inputs = [pb.Tensor("TOKENS_BATCH", ids.as_numpy()), pb.Tensor("SEQUENCE_LENGTH", lengths.as_numpy())]
        inputs += [pb.Tensor(name.upper(), tensors[name].as_numpy()) for name in self._passing if name in tensors]
        answer = self._call(self._postprocessing, inputs, {})
        tensors |= {name: pb.Tensor(name, answer[f"OUT_{name.upper()}"].as_numpy()) for name in self._passing}
        return pb.InferenceResponse([pb.Tensor("text_output", answer["OUTPUT"].as_numpy()), *tensors.values()])

    def _call(self, model: str, inputs: list[Any], parameters: dict[str, Any]) -> dict[str, Any]:
        """All outputs of a sibling that answers once; which it has depends on the release."""
        own = {key: str(value) for key, value in parameters.items() if not key.startswith(SERVER_OWN)}
        request = pb.InferenceRequest(model_name=model, requested_output_names=[], inputs=inputs, parameters=own)
        return checked(request.exec())

    def _infer(self, name: str, inputs: list[Any]) -> Any:
        """The engine's responses, as they come."""
        request = pb.InferenceRequest(
            model_name=self._engine,
            request_id=name,
            requested_output_names=self._outputs,
            inputs=inputs,
            parameters={"called_by_bls": "true"},
        )
        return request.exec(decoupled=True) if self._decoupled else [request.exec()]

    def _stop(self, name: str) -> None:
        """Tell the engine to give up a request: upstream's input `stop` with the request's id."""
        one = np.ones((1, 1), np.int32)
        needed = [pb.Tensor(tensor, one) for tensor in ("input_ids", "input_lengths", "request_output_len")]
        for _ in self._infer(name, [*needed, pb.Tensor("stop", np.ones((1, 1), np.bool_))]):
            pass


def checked(response: Any) -> dict[str, Any]:
    """Output name -> tensor. Raises ValueError with the sibling's own message."""
    if response.has_error():
        raise ValueError(response.error().message())
    return {tensor.name(): tensor for tensor in response.output_tensors()}


class Stream:
    """The ids of one sequence so far, one beam: what tells a continuation from a beginning."""

    def __init__(self, *, accumulate: bool) -> None:
        self._accumulate = accumulate
        self._ids: list[Any] = []
        self._count = 0

    @staticmethod
    def key(tensors: dict[str, Any]) -> object:
        """Which sequence of the request a response belongs to."""
        return tuple(
            int(tensors[name].as_numpy().item()) for name in ("batch_index", "sequence_index") if name in tensors
        )

    def next(self, tensors: dict[str, Any]) -> dict[str, Any]:
        """The response as postprocessing wants it: with all ids so far, or with a length that counts them."""
        ids, lengths = tensors["output_ids"].as_numpy(), tensors["sequence_length"].as_numpy()
        first = self._count == 0
        self._count += ids.shape[-1]
        if self._accumulate:
            self._ids.append(ids)
            ids = np.concatenate(self._ids, axis=-1)
        if not first:
            lengths = np.full(ids.shape[:-1], self._count, np.int32)
        both = [pb.Tensor("output_ids", ids), pb.Tensor("sequence_length", lengths)]
        return {**tensors, **{tensor.name(): tensor for tensor in both}}
