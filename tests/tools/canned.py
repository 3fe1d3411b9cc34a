"""A stand-in for the five models: a Triton Python model that knows two answers and can break each of its promises.

A token is a character (its code point), the end is token 3, and a step takes 10 ms. The file `fault` in the
repository names the promise that is broken at the moment; it is read with each request.
"""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

ANSWERS = {"Bees?": " Bees make honey 🐝🍯", "蜜蜂？": "蜜蜂酿蜂蜜🐝"}
END = 3
MAX_INPUT_LEN = 20
FINAL = pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonPythonModel:
    """One class for all five; which one it is, its name says."""

    def initialize(self, args: dict[str, str]) -> None:
        self.name = args["model_name"]
        self.fault_path = Path(args["model_repository"], "1", "fault")
        self.active, self.lock, self.numbers = 0, threading.Lock(), itertools.count()
        if self.name == "ensemble":
            self.family = pb.MetricFamily("nv_trt_llm_request_metrics", "requests", pb.MetricFamily.GAUGE)
            self.gauge = self.family.Metric(labels={"model": "tensorrt_llm", "request_type": "active"})

    def execute(self, requests: list[Any]) -> None:
        work = self.text if self.name in ("ensemble", "tensorrt_llm_bls") else self.ids
        for request in requests:
            given = {tensor.name(): tensor.as_numpy().ravel().tolist() for tensor in request.inputs()}
            threading.Thread(target=work, args=(given, request.get_response_sender()), daemon=True).start()

    def ids(self, given: dict[str, list[Any]], sender: Any) -> None:
        """preprocessing: text to ids; tensorrt_llm: ids to ids; postprocessing: ids to text."""
        if self.name == "preprocessing":
            found = {"INPUT_ID": np.array([[ord(letter) for letter in given["QUERY"][0].decode()]], np.int32)}
        elif self.name == "tensorrt_llm":
            answer = ANSWERS["".join(map(chr, given["input_ids"]))]
            ids = [ord(letter) for letter in answer][: given["request_output_len"][0]]
            found = {"output_ids": np.array([ids], np.int32), "sequence_length": np.array([[len(ids)]], np.int32)}
        else:
            found = {"OUTPUT": np.array([["".join(map(chr, given["TOKENS_BATCH"]))]], object)}
        tensors = [pb.Tensor(name, value) for name, value in found.items()]
        sender.send(pb.InferenceResponse(tensors), flags=FINAL)

    def text(self, given: dict[str, list[Any]], sender: Any) -> None:
        """ensemble and tensorrt_llm_bls: text to text."""
        prompt, fault = given["text_input"][0].decode(), self.fault_path.resolve().read_text()
        if len(prompt) > MAX_INPUT_LEN and fault != "length":
            error = pb.TritonError(f"{len(prompt)} tokens, at most {MAX_INPUT_LEN}")
            sender.send(pb.InferenceResponse(error=error), flags=FINAL)
            return
        answer = self.answer(prompt, given, fault)
        self.count(1, fault)
        for _ in answer:
            time.sleep(0.01)
        if given.get("stream", [False])[0]:
            for piece in answer.encode() if fault == "split" else answer:
                self.send(sender, bytes([piece]).decode(errors="replace") if isinstance(piece, int) else piece, 1)
            sender.send(flags=FINAL)
        else:
            echo = fault != "echo" and not given.get("exclude_input_in_output", [False])[0]
            self.send(sender, prompt * echo + answer, len(answer), FINAL)
        self.count(-1, fault)

    def answer(self, prompt: str, given: dict[str, list[Any]], fault: str) -> str:
        """What is generated, promises and faults included."""
        whole = ANSWERS.get(prompt, "?") + chr(END) + "and so on " * 9
        end = given.get("end_id", [END])[0]
        if end != -1:
            whole = whole.partition(chr(END if fault == "end_id" else end))[0]
        for word in given.get("stop_words", []):
            whole = whole if fault == "stop" else whole.partition(word.decode())[0]
        if fault == "answer" or (fault == "bls" and self.name == "tensorrt_llm_bls"):
            whole = whole.replace("e", "3")
        if fault == "memory":
            whole += str(next(self.numbers))
        return whole if fault == "max" else whole[: given["max_tokens"][0]]

    def count(self, change: int, fault: str) -> None:
        """The number of active requests, for the metric."""
        if self.name == "ensemble":
            with self.lock:
                self.active += change
                self.gauge.set({"serial": min(self.active, 1), "leak": max(self.active, 1)}.get(fault, self.active))

    def send(self, sender: Any, text: str, tokens: int, flags: int = 0) -> None:
        outputs = [pb.Tensor("text_output", np.array([[text]], object))]
        outputs.append(pb.Tensor("num_output_tokens", np.array([[tokens]], np.int32)))
        sender.send(pb.InferenceResponse(outputs), flags=flags)
