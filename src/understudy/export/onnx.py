"""Student -> `model.onnx`, and how ONNX Runtime runs it."""

from __future__ import annotations

import ast
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from understudy.core.errors import ExportError
from understudy.core.extras import optional
from understudy.core.files import write_whole
from understudy.core.nested import called, leaves, mapped
from understudy.export.interface import Interface, giving_plainly
from understudy.export.pt2 import program_of
from understudy.export.quiet import quiet_exporters
from understudy.graph.copies import copied

_REASON = 300  # characters
_FUSED = frozenset(("Relu", "Clip", "HardSigmoid", "LeakyRelu", "Sigmoid", "Tanh"))
_TRANSLATED = re.compile(r"translating node %(\w+)")


def write_onnx(
    program: torch.export.ExportedProgram,
    path: Path,
    *,
    metadata: Mapping[str, Any],
    interface: Interface | None = None,
) -> None:
    """Write a program as ONNX, weights included, whole or not at all.

    Args:
        program: what `program_of` returns.
        path: of the file.
        metadata: what goes into the file's own metadata, as JSON where it is not text.
        interface: names of inputs and outputs; None: those that the exporter makes up.

    Raises:
        ExportError: the exporter refuses it; with its reason.
        ExtraError: the packages of the extra `export` are missing.
    """
    for package in ("onnx", "onnxscript"):
        optional(package, extra="export")
    names: dict[str, Any] = {}
    if interface is not None:
        names = {"input_names": list(interface.inputs), "output_names": list(interface.outputs)}
    try:
        with quiet_exporters():
            made = torch.onnx.export(program, (), dynamo=True, external_data=False, verbose=False, **names)
    except Exception as error:
        raise ExportError(f"a student must be one that the ONNX exporter takes, but it says{_reason(error)}") from error
    assert made is not None
    model = made.model_proto
    _name_nodes(model.graph)
    _clean(model)
    for name, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = name, value if isinstance(value, str) else json.dumps(value)
    write_whole(path, model.SerializeToString())


def _reason(error: Exception) -> str:
    """Return what lies at the root of the exporter's errors, each of which says less than its cause, and the node."""
    chain = [error]
    while isinstance(cause := chain[-1].__cause__, Exception):
        chain.append(cause)
    node = next((found[1] for e in chain if (found := _TRANSLATED.search(str(e)))), None)
    said = [str(e).strip().partition("\n")[0] for e in chain]
    return f"{f' of {node!r}' if node else ''}: {next(filter(None, reversed(said)), type(error).__name__)}"


def _name_nodes(graph: Any) -> None:
    """Name operations, and what they give, after the modules that they come from: `stages.0.0.conv1/Conv`.

    A runtime's profile then says which layer takes the time, also where the runtime names its own operations after
    what they give.
    """
    weights = {value.name for value in graph.initializer}
    kept = {value.name for value in graph.output}
    renamed: dict[str, str] = {}
    convolutions: dict[str, str] = {}
    taken: Counter[str] = Counter()
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key.endswith("onnx.name_scopes")), "[]")
        path = (["", *ast.literal_eval(scopes)])[-2] if scopes != "[]" else ""
        path = next((n.rpartition(".")[0] for n in node.input if n in weights and "." in n), path)
        if node.op_type in _FUSED and node.input[0] in convolutions:
            path = convolutions[node.input[0]]  # a runtime makes one operation of both, named after what that gives
        if node.op_type == "Conv":
            convolutions[node.output[0]] = path
        base = f"{path}/{node.op_type}"
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        outputs = [name for name in node.output if name and name not in kept]
        renamed |= {name: node.name if index == 0 else f"{node.name}.{index}" for index, name in enumerate(outputs)}
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # a part of the graph of its own may use the names
    for node in graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                names[index] = renamed.get(name, name)
    for value in graph.value_info:
        value.name = renamed.get(value.name, value.name)


def _clean(model: Any) -> None:
    """Take out what the exporter notes of the Python files that a network comes from."""
    parts = [model, model.graph, *model.functions]
    parts += [node for holder in (model.graph, *model.functions) for node in holder.node]
    parts += [*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer]
    for part in parts:
        if hasattr(part, "metadata_props"):
            del part.metadata_props[:]
        if hasattr(part, "doc_string"):
            part.doc_string = ""
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param or "batch"
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(batch, "batch")


class OnnxModel(nn.Module):
    """An ONNX file as a module on the CPU: inputs as the network itself takes them, the tensors that it gives out.

    Several outputs are a dict by name, or a tuple where they have none but a number.

    Raises:
        ExportError: the file cannot be read.
        ExtraError: onnxruntime is missing.
    """

    def __init__(self, path: Path, *, threads: int = 1, profile: Path | None = None) -> None:
        super().__init__()
        runtime = optional("onnxruntime", extra="export")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = threads
        options.log_severity_level = 3
        if profile is not None:
            options.enable_profiling, options.profile_file_prefix = True, str(profile / "profile")
        try:
            self._session = runtime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ExportError(f"{path} must be an ONNX file, but cannot be read: {error}") from error
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._outputs = [value.name for value in self._session.get_outputs()]

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return what the network gives.

        Raises:
            ExportError: ONNX Runtime cannot run it on these inputs.
        """
        try:
            found = self._session.run(None, self.feed(named or inputs))
        except Exception as error:
            reason = " ".join(str(error).split())[:_REASON]
            raise ExportError(
                f"ONNX Runtime must run the student on batches of any size, but says: {reason}"
            ) from error
        tensors = tuple(torch.from_numpy(np.asarray(value)) for value in found)
        if len(tensors) == 1:
            return tensors[0]
        by_name = not any(name.rpartition("_")[2].isdigit() for name in self._outputs)
        return dict(zip(self._outputs, tensors, strict=True)) if by_name else tensors

    def feed(self, inputs: Any) -> dict[str, Any]:
        """Return inputs as the runtime takes them, arrays by the names that are in the file."""
        found = [(name, tensor.numpy()) for name, tensor in leaves(inputs)]
        if isinstance(inputs, Mapping):
            return {name: array for name, array in found if name in self._inputs}
        return dict(zip(self._inputs, (array for _, array in found), strict=True))

    def layer_times(self) -> dict[str, list[float]]:
        """Return the milliseconds that each module took in each run so far, by its path, and end the profile."""
        events = json.loads(Path(self._session.end_profiling()).read_text(encoding="utf-8"))
        times: dict[str, list[float]] = {}
        runs: Counter[str] = Counter()
        for event in events:
            name = event.get("name", "")
            if event.get("cat") != "Node" or not name.endswith("_kernel_time") or "/" not in name:
                continue
            found = times.setdefault(name.partition("/")[0], [])
            found += [0.0] * (runs[name] + 1 - len(found))
            found[runs[name]] += event["dur"] / 1e3
            runs[name] += 1
        return times

    def __deepcopy__(self, memo: Any) -> OnnxModel:
        return self  # sessions cannot be copied, and running one does not change it


def in_onnxruntime(network: nn.Module, inputs: Any, *, threads: int = 1) -> OnnxModel:
    """Return a network as ONNX Runtime runs it, on the CPU.

    Args:
        network: in evaluation mode; it is not touched.
        inputs: that it takes, of B examples.
        threads: of the runtime.

    Raises:
        ExportError: an exporter refuses it; with its reason.
        ExtraError: the packages of the extra `export` are missing.
    """
    exported = copied(network).cpu().float().eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "network.onnx"
        to_onnx(exported, inputs, path)
        return OnnxModel(path, threads=threads)


def to_onnx(network: nn.Module, inputs: Any, path: Path, *, images: bool = False) -> None:
    """Write a network in evaluation mode as ONNX, with the names of its own inputs and outputs.

    Raises:
        ExportError: an exporter refuses it; with its reason.
        ExtraError: the packages of the extra `export` are missing.
    """
    two = mapped(inputs, lambda tensor: tensor if len(tensor) > 1 else torch.cat([tensor, tensor]))
    with torch.no_grad():
        given = called(network, two)
    names = Interface.between(two, given, images=images)
    write_onnx(program_of(giving_plainly(network, given), two), path, metadata={}, interface=names)


def quantise(source: Path, target: Path, batches: Iterable[Any]) -> None:
    """Write an ONNX file with weights and activations in 8 bits (QDQ), scales from the batches that it is shown.

    Weights have a scale for each channel. ONNX Runtime's static quantiser does it.

    Raises:
        ExportError: the quantiser refuses the network; with its reason.
        ExtraError: the packages of the extra `export` are missing.
    """
    optional("onnx", extra="export")
    quantization = optional("onnxruntime.quantization", extra="export")
    shape_inference = optional("onnxruntime.quantization.shape_inference", extra="export")
    prepared, partial = target.with_suffix(".prepared"), target.with_suffix(".partial")
    model = OnnxModel(source)
    reader = _reader(quantization, (model.feed(inputs) for inputs in batches))
    try:
        with quiet_exporters():
            shape_inference.quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared), str(partial), reader, quant_format=quantization.QuantFormat.QDQ, per_channel=True
            )
        _refuse_floats(partial)
        write_whole(target, partial.read_bytes())
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"a student must be one that ONNX Runtime can quantise, but it says: {error}") from error
    finally:
        for path in (prepared, partial):
            path.unlink(missing_ok=True)


def _refuse_floats(path: Path) -> None:
    onnx = optional("onnx", extra="export")
    weights = onnx.load(str(path)).graph.initializer
    if not any(w.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8) and len(w.dims) > 1 for w in weights):
        raise ExportError(
            "a student in 8 bits must have a convolution or a product with weights that ONNX Runtime can quantise, "
            "but it found none in this network"
        )


def _reader(quantization: Any, feeds: Iterable[dict[str, Any]]) -> Any:
    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives one batch after the other to the quantiser."""

        def __init__(self) -> None:
            self._feeds = iter(feeds)

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    return Reader()
