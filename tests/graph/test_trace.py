from __future__ import annotations

import gc
import math
import threading
import types
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.optim.swa_utils import AveragedModel

from tests.support.models import images, zoo_analysis
from tests.support.modules import odd_modules, odd_python, odd_tensors
from understudy.core.errors import TraceError
from understudy.graph import analysis as module
from understudy.graph.analysis import Analysis, analyse
from understudy.graph.copies import copied
from understudy.graph.fake import Signature, source_line
from understudy.graph.groups import Groups, find_groups
from understudy.graph.kinds import leaf_classes
from understudy.graph.surroundings import unchanged
from understudy.graph.trace import Trace, trace
from understudy.models import zoo
from understudy.proof.prove import prove
from understudy.surgery.build import build
from understudy.surgery.masked import tensors_of


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x


class SamePadding(nn.Module):
    """Pads by numbers that the example's size decides, in a branch, as networks ported from TensorFlow do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        rows = max((math.ceil(height / 2) - 1) * 2 + 3 - height, 0)
        columns = max((math.ceil(width / 2) - 1) * 2 + 3 - width, 0)
        if rows > 0 or columns > 0:
            x = nn.functional.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(x)


class TwoInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0) -> dict[str, Tensor]:
        return {"out": x * scale if y is None else x + y}


def test_leaves_the_teacher_alone() -> None:
    model = zoo.create("vgg11", width=4).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    trace(model, images(2))
    assert model.training and model.features[1].training
    assert torch.equal(torch.random.get_rng_state(), state)
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_records_shapes_and_lines() -> None:
    traced = zoo_analysis("resnet20").trace
    add = next(node for node in traced.nodes if "add" in node.name)
    assert add.meta["value"] == Signature((2, 8, 32, 32), torch.float32)
    assert source_line(add).startswith("resnet.py:")
    assert source_line(add).endswith("residual + self.shortcut(x))")
    assert traced.batch == 2


def test_refuses_branches_on_values_with_their_line() -> None:
    with pytest.raises(TraceError, match=r"test_trace\.py:\d+: if x\.sum\(\) > 0.*leaf_modules"):
        trace(Branching(), torch.ones(2, 3))


def test_takes_the_branch_of_the_examples_shape() -> None:
    traced = trace(SamePadding(), images(1))
    assert any(node.target is nn.functional.pad for node in traced.nodes)
    assert traced.nodes[-1].meta["value"].shape == (1, 4, 16, 16)


def test_a_leaf_module_is_one_operation() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Branching())
    traced = trace(model, torch.ones(2, 3), leaf_modules=(Branching,))
    assert [node.target for node in traced.nodes if node.op == "call_module"] == ["0", "1"]


@pytest.mark.parametrize("example", [torch.ones(2, 3), (torch.ones(2, 3), torch.ones(2, 3)), {"x": torch.ones(2, 3)}])
def test_examples_are_tensors_tuples_or_dicts(example: object) -> None:
    traced = trace(TwoInputs(), example)  # type: ignore[arg-type]
    assert traced.nodes[-1].meta["value"]["out"].shape == (2, 3)


def test_says_when_the_example_is_wrong() -> None:
    with pytest.raises(TraceError, match=r"must accept the example \{'images': \(2, 5, 32, 32\)\}, but it failed"):
        trace(zoo.create("vgg11", width=4), images(2, channels=5))
    with pytest.raises(TraceError, match="the example has 4 inputs, but forward takes 3: x, y, scale"):
        trace(TwoInputs(), (torch.ones(1),) * 4)


def test_what_is_no_example_and_no_teacher() -> None:
    conv = nn.Conv2d(3, 8, 3)
    for wrong in (None, [8, 8], {}, images(2, size=8).numpy()):
        with pytest.raises(TraceError, match=r"an example must be a tensor as the forward pass takes it, .* but got "):
            trace(conv, wrong)  # type: ignore[arg-type]
    with pytest.raises(TraceError, match=r"an example must have elements, but 'input' has the shape \(0, 3, 8, 8\)"):
        trace(conv, images(0, size=8))
    with pytest.raises(TraceError, match=r"a teacher must be a torch\.nn\.Module, but got function"):
        trace(lambda x: x, images(2))  # type: ignore[arg-type]


def test_the_type_of_a_device_is_a_plain_text() -> None:
    class Exact(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(device_type=x.device.type, enabled=False):
                return x * torch.ones(8, device=x.device)

    traced = trace(Exact().eval(), torch.zeros(2, 8))
    assert [str(node.target) for node in traced.nodes if node.op == "placeholder"] == ["x"]
    assert traced.nodes[-2].meta["value"].shape == (2, 8)


def test_a_parameter_of_two_names_is_one_node() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.ones(8))
            self.second = self.first
            self.register_buffer("third", torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return x * self.first + self.second * self.third

    traced = trace(Tied().eval(), torch.zeros(2, 8))
    assert [node.target for node in traced.nodes if node.op == "get_attr"] == ["first", "third"]


def analysed(name: str) -> Analysis:
    case = next(case for case in (*odd_tensors.CASES, *odd_modules.CASES, *odd_python.CASES) if case.name == name)
    return analyse(case.network(), case.input())


TOUCHED = [
    "odd_write_rows",
    "odd_boolean_index",
    "odd_batch_halves",
    "py_width_as_numpy",
    "py_transformed_distribution",
]


@pytest.mark.parametrize("name", TOUCHED)
def test_only_what_is_touched_freezes(name: str) -> None:
    analysis, _ = prove(analysed(name))
    assert {"b", "c"} <= {group.name for group in analysis.space.groups}


# What goes by another name, or is a plain value, in the code that is recorded.
NOTED = ["py_identity_of_none", "py_and_without_gradient"]


@pytest.mark.parametrize("name", NOTED)
def test_the_recorded_graph_gives_what_the_network_gives(name: str) -> None:
    recorded = analysed(name).trace
    x = recorded.example
    assert torch.equal(fx.GraphModule(recorded.root, recorded.graph)(x), recorded.teacher(x))


@pytest.mark.parametrize("name", ["py_sliced_sequential", "py_dimension", "odd_transpose_batch", *NOTED])
def test_what_moves_or_is_called_in_another_way_is_followed(name: str) -> None:
    analysis, _ = prove(analysed(name))
    assert {"a", "b", "c"} <= {group.name for group in analysis.space.groups}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("py_hidden_list", r"the Conv2d called at odd_python.py:\d+: .* is none. Make it an attribute of its module"),
        ("py_closure_over_network", "every layer must be a registered part of the teacher"),
        ("py_scripted", "extra is a scripted module"),
    ],
)
def test_what_cannot_be_copied_rightly_is_refused(name: str, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        analysed(name)


@pytest.mark.parametrize("given", [[Branching], Branching, {Branching}])
def test_leaf_modules_may_stand_in_a_list_or_alone(given: Any) -> None:
    assert analyse(nn.Sequential(nn.Linear(3, 3), Branching()), torch.ones(2, 3), given).leaf_modules == (Branching,)


def test_leaf_modules_are_classes() -> None:
    with pytest.raises(TraceError, match=r"leaf_modules must be classes of modules, .* but got 'Branching'"):
        leaf_classes(("Branching",))


def test_what_nothing_can_copy_is_named() -> None:
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    network[0].lock = threading.Lock()
    with pytest.raises(TraceError, match=r"copy\.deepcopy can copy, but it cannot: 0\.lock is a lock"):
        analyse(network, torch.rand(1, 2))


class Slotted(nn.Module):
    __slots__ = ("scale",)

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.layer = 2.0, nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.scale


def test_slots_that_a_copy_would_lose_are_named() -> None:
    with pytest.raises(TraceError, match=r"but it loses 0\.scale, which stands in __slots__ of Slotted"):
        analyse(nn.Sequential(Slotted()), torch.rand(1, 2))


def test_a_network_that_keeps_the_handles_of_its_hooks_is_copied_again_and_again() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    network.handles = [network[1].register_forward_hook(lambda module, given, found: None)]
    network.handles += [copied(network[1]).register_forward_hook(print)]  # whose module is gone
    again = copied(copied(network))
    again.handles[0].remove()
    assert not again[1]._forward_hooks and network[1]._forward_hooks


@pytest.mark.parametrize("name", ["py_reused", "py_moving_assigned", "py_logged", "py_counting"])
def test_recording_leaves_nothing_in_the_modules(name: str) -> None:
    analysis = analysed(name)
    held = [value for module in analysis.trace.root.modules() for value in vars(module).values()]
    held += [value for part in held if isinstance(part, dict) for value in part.values()]
    assert not [value for value in held if isinstance(value, torch.fx.Proxy)]


def test_tensors_of_a_dataclass_are_compared() -> None:
    case = next(case for case in odd_modules.CASES if case.name == "py_dataclass_output")
    assert [t.shape[1] for t in tensors_of(case.network()(case.input()))] == [3, 8]


class CountsItsSteps(nn.Module):
    """Counts the batches it was trained on, as running means of one's own do."""

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
        return self.last(torch.relu(self.first(x)))


class AnyNumber(CountsItsSteps):
    def forward(self, *given: Tensor) -> Tensor:
        return super().forward(given[0])


class RefusesCopies(CountsItsSteps):
    def __deepcopy__(self, memo: object) -> RefusesCopies:
        raise AssertionError("sharded networks have no copies")  # as torch's FSDP does


class PartWrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.DataParallel(CountsItsSteps())

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def replaced(part: str, *, bound: bool) -> nn.Module:
    """Return a network with a forward that calls the one of before, as a decorator of one's own would leave it."""
    teacher = CountsItsSteps()
    module = teacher.get_submodule(part)
    before = module.forward
    module.forward = types.MethodType(lambda _, x: 2 * before(x), module) if bound else lambda x: 2 * before(x)
    return teacher


UNFIT = {
    "forward replaced": (
        lambda: replaced("", bound=False),
        "that of the teacher was replaced by a function",
    ),
    "forward bound": (lambda: replaced("", bound=True), "that of the teacher was replaced by a function"),
    "part replaced": (lambda: replaced("first", bound=False), "that of first was replaced by a function"),
    "part wrapped": (
        PartWrapped,
        r"body is a DataParallel .* Put what it holds .*, teacher.body = teacher.body.module;",
    ),
    "data parallel": (lambda: nn.DataParallel(CountsItsSteps()), r"DataParallel around it. Give .* teacher.module;"),
    "averaged": (lambda: AveragedModel(CountsItsSteps()), r"AveragedModel around it. Give .* teacher.module;"),
    "compiled": (
        lambda: torch.compile(CountsItsSteps()),
        r"but it is an OptimizedModule around it. Give .* teacher._orig_mod;",
    ),
    "exported": (
        lambda: torch.export.export(CountsItsSteps(), (torch.randn(4, 8),)).module(),
        "it is a program of torch.export, which .* Give the module that torch.export.export was called with",
    ),
    "lazy": (
        lambda: nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 3)),
        "0.weight is lazy. Call the teacher once on an example",
    ),
    "meta": (lambda: CountsItsSteps().to("meta"), "first.weight is on the meta device. Load its weights"),
    "quantised": (
        lambda: nn.Sequential(nn.Linear(8, 8), torch.ao.nn.quantized.dynamic.Linear(8, 3)),
        "1 is a quantised Linear. Give the network from before",
    ),
    "any number of inputs": (AnyNumber, r"takes them as \*given. Name them there"),
    "not to be copied": (RefusesCopies, r"copy.deepcopy can copy, but it cannot.*: sharded networks have no copies"),
    "no module": (lambda: CountsItsSteps, "must be a torch.nn.Module, but got type"),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # what torch.compile imports
@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
@pytest.mark.parametrize("kind", UNFIT)
def test_what_no_student_can_be_made_of_is_refused_with_a_way_out(kind: str) -> None:
    make, message = UNFIT[kind]
    with pytest.raises(TraceError, match=message):
        analyse(make(), torch.randn(4, 8))


def test_a_file_of_the_users_own_may_be_called_quantized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CountsItsSteps, "__module__", "mine.quantized")
    assert [group.name for group in analyse(CountsItsSteps(), torch.randn(4, 8)).space.groups] == ["first"]


def test_analysis_leaves_the_teachers_counters_alone() -> None:
    teacher = CountsItsSteps()
    analyse(teacher, torch.randn(4, 8))
    assert int(teacher.steps) == 0


def test_a_tensor_has_no_attributes_that_tensors_lack() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.features if hasattr(x, "features") else x
            return self.last(self.first(x).unsqueeze(1).max(dim=1).values)

    assert [group.name for group in analyse(Nested(), torch.randn(4, 8)).space.groups] == ["first"]


def test_what_keeps_its_width_always_says_why() -> None:
    def shuffled(x: Tensor) -> Tensor:
        return x.unflatten(1, (3, 2)).transpose(1, 2).flatten(1, 2)

    class Unfree(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(6, 6, 1, groups=3)
            nn.utils.parametrizations.spectral_norm(self.first)
            self.stem, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.stem(self.first(x)))
            y = self.head(y + shuffled(self.grouped(y)))
            return y * self.first.parametrizations.weight.original.norm()

    frozen = {found.name: found.reason for found in analyse(Unfree(), torch.randn(2, 3, 6, 6)).space.frozen}
    assert frozen["first"] == (
        "the module ParametrizedConv2d computes its weight, and with a plain one the network gives something else"
    )
    assert frozen["stem"] == "all of these channels go together, so none can"


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_is_as_before(enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    during: list[bool] = []

    def found(traced: Trace) -> Groups:
        during.append(gc.isenabled())
        return find_groups(traced)

    monkeypatch.setattr(module, "find_groups", found)
    before = gc.isenabled()
    try:
        (gc.enable if enabled else gc.disable)()
        analyse(nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8))
        with pytest.raises(TraceError):
            analyse(nn.Conv2d(3, 4, 3), torch.randn(2, 4, 8, 8))
        assert (during, gc.isenabled()) == ([False], enabled)
    finally:
        (gc.enable if before else gc.disable)()


def swish(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


class Scripted(CountsItsSteps):
    """Uses a function that TorchScript has compiled, and sizes that it may be given."""

    def forward(self, x: Tensor, *, size: tuple[int, ...] = (8,), scale: float = 2.0) -> Tensor:
        return self.last(swish(self.first(x.reshape(-1, *size))) * scale)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_scripted_functions_are_looked_into_and_defaults_may_be_tuples(monkeypatch: pytest.MonkeyPatch) -> None:
    scripted = torch.jit.script(swish)
    monkeypatch.setitem(globals(), "swish", scripted)
    analysis, x = analyse(Scripted().eval(), torch.randn(4, 8)), torch.randn(4, 8)
    assert [(group.name, group.plain) for group in analysis.space.groups] == [("first", "")]
    assert scripted(x).equal(x * torch.sigmoid(x))
    student = build(analysis, analysis.space.full.with_width("first", 5))
    assert student(x, size=(8,)).shape == (4, 3)


class PutsAside(CountsItsSteps):
    """A hook keeps what a layer returned, and the forward pass takes it from there."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[str, Tensor] = {}
        self.first.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
        self.kept["first"] = found

    def forward(self, x: Tensor) -> Tensor:
        self.first(x)
        return self.last(torch.relu(self.kept["first"]))


def test_what_a_layers_hook_puts_aside_is_not_taken_for_a_constant() -> None:
    with pytest.raises(TraceError, match=r"test_trace.py:\d+: .* it reads a tensor that a layer, or a hook of one"):
        analyse(PutsAside().eval(), torch.randn(4, 8))


class PutsAsideInClosure(PutsAside):
    """The same with a function that knows the teacher, or the dict: in a copy it would know them still."""

    def __init__(self, knows: str) -> None:
        super().__init__()
        kept, self.first._forward_hooks = self.kept, OrderedDict()

        def of_network(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
            self.kept["first"] = found

        def of_dict(module: nn.Module, given: tuple[Tensor, ...], found: Tensor) -> None:
            kept["first"] = found

        self.first.register_forward_hook(of_network if knows == "network" else of_dict)


@pytest.mark.parametrize("knows", ["network", "dict"])
def test_hooks_that_a_copy_would_share_with_the_teacher_are_refused(knows: str) -> None:
    teacher, x = PutsAsideInClosure(knows).eval(), torch.randn(4, 8)
    teacher(x)
    before = teacher.kept["first"]
    with pytest.raises(TraceError, match=r"hooks must be such that a copy .* one of first is a function that holds"):
        analyse(teacher, x)
    assert teacher.kept["first"] is before


def test_int_stays_a_kind_where_code_asks_for_it() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            height = int(x.shape[2] / 2)
            assert isinstance(3, int) and torch.zeros(1, dtype=int).dtype == torch.int64
            return self.head(torch.relu(self.stem(x))[:, :, :height].mean((2, 3)))

    assert analyse(Asking(), torch.randn(2, 3, 4, 4)).space.groups


class Centred(nn.Module):
    """A plain tensor that each forward pass casts."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.mean = nn.Linear(3, 2), torch.rand(3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        return self.fc(x - self.mean)


def test_what_a_forward_pass_stores_without_values_is_taken_back() -> None:
    model = Centred().double()
    before = model.mean
    with unchanged(model):
        model.to("meta")(torch.randn(2, 3, device="meta", dtype=torch.float64))
    assert model.mean is before


def test_values_that_numpy_is_given_are_a_branch() -> None:
    class Periods(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x / (1 + x.abs().mean(0).topk(1).indices.detach().cpu().numpy()[0])

    with pytest.raises(TraceError, match=r"must not branch on the values .* at test_trace\.py:\d+: "):
        analyse(nn.Sequential(nn.Linear(3, 3), Periods()), torch.rand(2, 3))


def test_what_fails_without_words_is_told_by_its_kind_and_line() -> None:
    class Wordless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(3, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor, targets: Tensor | None = None) -> Tensor:
            if self.training and targets is None:
                raise ValueError
            return self.head(torch.relu(self.fc(x)))

    reason = analyse(Wordless().eval(), torch.rand(2, 3)).space.frozen[0].reason
    assert reason.startswith("the forward pass in training mode cannot be traced: ValueError (test_trace.py:")
    assert reason.endswith(": raise ValueError)")
