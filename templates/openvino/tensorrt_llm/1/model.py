"""The engine model of the embedded lane: TensorRT-LLM's tensor contract over OpenVINO GenAI."""

from __future__ import annotations

import functools
import itertools
import json
from typing import Any

import triton_python_backend_utils as pb
from answer import Answer
from arguments import jobs
from batcher import Batcher
from contexts import Contexts
from engine import Engine
from job import Channel
from metrics import Metrics
from pieces import Pieces
from reply import failure
from settings import load_settings
from tokenizing import Tokenizer, directory
from watching import Watch, streams_seen

FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL
BLS = "called_by_bls"  # a request parameter


class TritonPythonModel:
    """Queues requests; the batcher answers them from its own thread."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load engine and tokenizer; whatever is wrong with them fails the model's load."""
        config = json.loads(args["model_config"])
        folder = directory(args, config, "gpt_model_path")
        tokenizer = directory(args, config, "tokenizer_dir")
        self._settings = load_settings(folder, config)
        self._pieces = Pieces(tokenizer, Tokenizer(tokenizer))
        metrics = Metrics(args["model_name"], args["model_version"])
        engine = Engine(folder, self._settings)
        self._batcher = Batcher(engine, self._settings, metrics, pb.TritonError.CANCELLED)
        self._batcher.start()
        self._contexts = Contexts(engine.forward, self._batcher.submit, pb.TritonError.CANCELLED)
        self._contexts.start()
        sibling = "postprocessing" + args["model_name"].removeprefix("tensorrt_llm")
        self._watch = Watch(
            self._batcher, functools.partial(streams_seen, sibling), self._settings.cancellation_check_s
        )
        self._watch.start()
        self._numbers = itertools.count(1)

    def execute(self, requests: list[Any]) -> None:
        """Answers come through each request's sender, in either transaction policy."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                self._accept(request, sender)
            except (ValueError, TypeError) as mistake:
                sender.send(failure(str(mistake)), flags=FINAL)

    def _accept(self, request: Any, sender: Any) -> None:
        """Queue the jobs of one request; raise ValueError, before anything is queued, for what cannot be done."""
        tensors = {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
        if "stop" in tensors and tensors["stop"].any():
            self._batcher.cancel(request.request_id())
            sender.send(*([] if self._settings.decoupled else [pb.InferenceResponse([])]), flags=FINAL)
            return
        todo = jobs(tensors, self._settings)
        channel = Channel(
            send=functools.partial(deliver, sender),
            is_cancelled=sender.is_cancelled,
            request_id=request.request_id(),
            final_flag=FINAL,
            open_jobs=len(todo),
        )
        ensemble = called_by_ensemble(request.requested_output_names(), request.parameters())
        numbers = self._numbers if ensemble else itertools.repeat(None)
        answers = [Answer(job, channel, self._pieces, next(numbers)) for job in todo]
        self._batcher.submit([one for one in answers if not one.job.wanted.context_logits])
        self._contexts.put([one for one in answers if one.job.wanted.context_logits])

    def finalize(self) -> None:
        """Answer what is in flight and end the threads."""
        self._contexts.stop()
        self._batcher.stop()
        self._watch.join()


def deliver(sender: Any, *response: Any, flags: int = 0) -> None:
    """Send; a way back that is broken is one client's loss, never the batch's."""
    try:
        sender.send(*response, flags=flags)
    except pb.TritonModelException as reason:
        pb.Logger.log_warn(f"a response could not be delivered: {reason}")


def called_by_ensemble(outputs: set[str], parameters: str) -> bool:
    """An ensemble wants every output that it maps, which is all but one; a client wants few or all.

    The BLS wants the same as an ensemble, but says who it is: it counts ids itself, and tells when its client goes.
    """
    return "total_draft_tokens" in outputs and "context_phase_params" not in outputs and BLS not in parameters
