"""A personal model as one ONNX graph: an image's pixels in, probabilities of the trained classes out.

The image encoder with the client's changes is in it, and what the text encoder has made of the classes. The text
encoder is not, so the classes are fixed. Needs the extra `onnx`.
"""

from __future__ import annotations

import json
import logging
import warnings
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedvlm.errors import FedvlmError
from fedvlm.personal.model import PersonalModel
from fedvlm.training.device import Device
from fedvlm.tuners.base import predict

FILE = "model.onnx"


class Graph(nn.Module):
    """Pixels of prepared images, uint8 `[N, 3, S, S]`, to logits and probabilities `[N, K]`."""

    def __init__(self, model: PersonalModel) -> None:
        super().__init__()
        self.tuner, tensors, classifier = model.ready(model.class_list())
        self.clip, self.temperature = model.clip, model.facts.calibrated.temperature
        self.names = list(tensors), list(classifier)
        self.tensors, self.made = (nn.ParameterList([nn.Parameter(one, requires_grad=False) for one in part.values()])
                                   for part in (tensors, classifier))  # fmt: skip

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits as they are, and softmax of logits / temperature."""
        tensors, made = (dict(zip(names, part, strict=True))
                         for names, part in zip(self.names, (self.tensors, self.made), strict=True))  # fmt: skip
        hidden = self.clip.visual.hidden(self.clip.preprocess.normalise(pixels), self.tuner.entry)
        logits = predict(self.tuner, tensors, made, hidden)[0]
        logits = logits if logits.ndim == 2 else logits.mean(1)
        return logits, torch.softmax(logits / self.temperature, -1)


def check() -> None:
    """Raise `FedvlmError` if the extra is missing."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise FedvlmError(f"ONNX needs the extra: pip install 'fedvlm[onnx]' ({error})") from None


def make(model: PersonalModel) -> bytes:
    """The graph's file, with classes and the preparation of images in its metadata, checked with onnxruntime.

    Raises `FedvlmError` where the extra is missing, where a method cannot be written as a graph, and where the graph
    gives other numbers than the model in float32 on the CPU (1e-4 of the largest logit).
    """
    check()
    import onnx
    import onnxruntime

    model = replace(model, clip=deepcopy(model.clip).cpu(), device=Device(torch.device("cpu")))
    graph, size = Graph(model).eval(), model.clip.preprocess.size
    draws = torch.Generator().manual_seed(0)
    example = torch.randint(0, 256, (3, 3, size, size), generator=draws, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that nothing here needs
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph, (example,), input_names=["pixels"], output_names=["logits", "probabilities"], dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("images", min=1)},), verbose=False,
            )  # fmt: skip
    except Exception as error:  # torch raises many kinds
        raise FedvlmError(
            f"{model.facts.title} cannot be written as an ONNX graph ({type(error).__name__}: {_first(error)})"
        ) from None
    assert program is not None
    made = program.model_proto
    for key, value in _metadata(model).items():
        made.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(made)
    data: bytes = made.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        for count in (3, 1):
            expected = graph(example[:count])[0]
            found = torch.from_numpy(session.run(["logits"], {"pixels": example[:count].numpy()})[0])
            if float((found - expected).abs().max()) > 1e-4 * float(expected.abs().max()):
                raise FedvlmError(f"{model.facts.title}: onnxruntime gives other logits than the model")
    return data


def _metadata(model: PersonalModel) -> dict[str, str]:
    preprocess, calibrated = model.clip.preprocess, model.facts.calibrated
    image: dict[str, Any] = {"size": preprocess.size, "transform": preprocess.identity, "pixels": "RGB, 0..255"}
    return {
        "classes": json.dumps(model.class_list()), "image": json.dumps(image),
        "none_below": json.dumps(calibrated.none_below), "method": model.facts.method,
        "experiment": model.facts.experiment, "client": model.facts.client, "fedvlm": model.facts.package,
    }  # fmt: skip


def _first(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:160] if lines else ""
