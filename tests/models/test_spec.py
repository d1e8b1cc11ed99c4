from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.tiny import FACTORY, Tiny
from understudy.core.errors import ConfigError, DataError, ModelError
from understudy.data import Data
from understudy.models.code import code_of
from understudy.models.spec import ModelSpec, check_outputs, load_model
from understudy.models.weights import load_into, read_weights, save_weights


def test_classes_and_channels_come_from_the_data() -> None:
    data = Data.digits()
    assert ModelSpec.for_data("zoo:resnet20", data, {}).arguments == {"input_channels": 1, "classes": 10}
    assert ModelSpec.for_data(FACTORY, data, {"width": 4}).arguments == {"in_channels": 1, "classes": 10, "width": 4}


def test_a_seed_decides_the_weights_and_global_randomness_does_not() -> None:
    spec = ModelSpec(name="zoo:resnet20", arguments={"width": 4})
    before = torch.get_rng_state()
    first, again, other = spec.build(3), spec.build(3), spec.build(4)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("resnet20", ModelError, "a model must be zoo:NAME, .* but got 'resnet20'"),
        ("model.py", ModelError, "got 'model.py'; name the function in it that makes the network: model.py:make"),
        ("zo:resnet20", ModelError, "did you mean 'zoo'"),
        ("zoo:resnet21", ConfigError, "did you mean 'resnet20'"),
        ("nothing.py:make", ModelError, "there is no .*nothing.py"),
        (FACTORY.replace("make", "mak"), ModelError, "must have a function 'mak' .did you mean 'make'"),
        (FACTORY.replace("make", "DEVICE"), ModelError, "must have a function 'DEVICE'"),
    ],
)
def test_models_that_do_not_exist(name: str, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ModelSpec(name=name).build()


def test_arguments_must_fit() -> None:
    with pytest.raises(ModelError, match=r"is called with \(depth=3\), but: .*--arguments NAME=VALUE"):
        ModelSpec(name=FACTORY, arguments={"depth": 3}).build()


def test_a_factory_must_return_a_module(tmp_path: Path) -> None:
    (tmp_path / "no_module.py").write_text("def make():\n    return 3\n")
    with pytest.raises(ModelError, match=r"must return a torch.nn.Module, but returned int"):
        ModelSpec(name=f"{tmp_path / 'no_module.py'}:make").build()


def test_a_factory_that_fails_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import torch\nnet = torch.nn.ReLU()\n\ndef make():\n    open('no such file')\n")
    with pytest.raises(ModelError, match=r"but failed: FileNotFoundError: .*no such file.* \(.*fails\.py, line 5\)"):
        ModelSpec(name=f"{tmp_path / 'fails.py'}:make").build()
    with pytest.raises(ModelError, match="a function that returns the network, but is a network itself"):
        ModelSpec(name=f"{tmp_path / 'fails.py'}:net").build()


def test_a_file_that_goes_to_another_folder_moves_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    save_weights(Path("w.safetensors"), Tiny())
    goes = f"import os\nos.chdir({str(tmp_path)!r})\nfrom tests.support.tiny import Tiny\n\n"
    goes += "def make():\n    assert os.path.isdir('here')\n    return Tiny()\n"
    (tmp_path / "goes.py").write_text(goes)
    load_model("../goes.py:make", Data.digits(), weights=Path("w.safetensors"))
    assert Path.cwd() == tmp_path / "here"


def test_a_file_must_not_have_the_name_of_another_module(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("")
    with pytest.raises(ModelError, match=r"a name of its own, but there is another 'json': .*json.*; rename json.py"):
        ModelSpec(name=f"{tmp_path / 'json.py'}:make").build()


def test_random_weights_are_no_teacher() -> None:
    with pytest.raises(ModelError, match="must be trained, but 'zoo:resnet20' comes with random weights"):
        load_model("zoo:resnet20", Data.digits())


def test_weights_are_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    data, model = Data.digits(), Tiny()
    save_weights(tmp_path / "w.safetensors", model)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pt")
    for name in ("w.safetensors", "w.pt"):
        loaded = load_model(FACTORY, data, weights=tmp_path / name, mean=(0.5,), std=(0.25,))
        assert all(torch.equal(a, b) for a, b in zip(loaded.module.parameters(), model.parameters(), strict=True))
        assert loaded.fit(data).mean == (0.5,)


def test_tied_weights_are_saved_under_both_names(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_weights(tmp_path / "w.safetensors", model)
    assert set(load_file(tmp_path / "w.safetensors")) == set(model.state_dict())


def test_pickled_weights_are_refused_with_the_way_to_convert_them(tmp_path: Path) -> None:
    torch.save(Tiny(), tmp_path / "whole.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(SimpleNamespace(a=1)))
    for name in ("whole.pt", "plain.pt"):
        with pytest.raises(
            ModelError, match=r"(?s)refusing to unpickle.*safetensors or a state dict.*weights_only=False.*save_file"
        ):
            read_weights(tmp_path / name)


def test_files_that_hold_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="must be readable"):
        read_weights(tmp_path / "none.pt")
    (tmp_path / "x.safetensors").write_bytes(b"text")
    with pytest.raises(ModelError, match=r"a file named \.safetensors must be one"):
        read_weights(tmp_path / "x.safetensors")
    torch.save([torch.zeros(1)], tmp_path / "list.pt")
    with pytest.raises(ModelError, match="must hold a state dict"):
        read_weights(tmp_path / "list.pt")


def test_weights_that_do_not_fit_are_listed() -> None:
    state = Tiny().state_dict()
    state["classifier.wieght"] = state.pop("classifier.weight")
    state["classifier.bias"] = torch.zeros(3)
    with pytest.raises(ModelError) as caught:
        load_into(Tiny(), state, source="w.pt")
    assert str(caught.value).splitlines() == [
        "weights must fit the model, but in w.pt:",
        "  classifier.weight is missing (did you mean 'classifier.wieght'?)",
        "  classifier.wieght is not in the model",
        "  classifier.bias is (3,), the model's is (10,)",
    ]


def test_weights_from_before_batch_norm_counted_batches_fit() -> None:
    trained, model = Tiny(), Tiny()
    state = {name: value for name, value in trained.state_dict().items() if "num_batches" not in name}
    load_into(model, state, source="w.pt")
    assert torch.equal(model.first[0].weight, trained.first[0].weight) and model.first[1].num_batches_tracked == 0


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off_and_told(prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    trained, model = Tiny(), Tiny()
    load_into(model, {f"{prefix}{name}": value for name, value in trained.state_dict().items()}, source="w.pt")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    assert f"names in w.pt begin with {prefix.split('.')[0] + '.'!r}, which was taken off" in caplog.text


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_inside_a_checkpoint_are_found(key: str, tmp_path: Path) -> None:
    model = Tiny()
    torch.save({"epoch": 3, key: model.state_dict(), "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    assert set(read_weights(tmp_path / "w.pt")) == set(model.state_dict())


def test_damaged_weights_of_ours_are_noticed(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", Tiny())
    content = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ModelError, match="must be as it was written, but is damaged"):
        read_weights(tmp_path / "w.safetensors")
    save_file(Tiny().state_dict(), tmp_path / "foreign.safetensors")
    assert read_weights(tmp_path / "foreign.safetensors")
    with pytest.raises(ModelError, match="must be as it was written"):
        read_weights(tmp_path / "foreign.safetensors", ours=True)


class Outputs(nn.Module):
    """Returns what it is told to."""

    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: torch.Tensor) -> object:
        return self.output


class TwoInputs(nn.Module):
    def forward(self, images: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return images


@pytest.mark.parametrize(
    ("model", "error", "text"),
    [
        (
            TwoInputs(),
            ModelError,
            r"one batch of images, .*only the classification of images .*'lengths'",
        ),
        (
            Outputs({"out": 1, "aux": 2}),
            ModelError,
            "as one tensor, .* but returned a dict of out, aux: wrap",
        ),
        (Outputs((1, 2)), ModelError, "returned a tuple of 2"),
        (Outputs(torch.zeros(2, 3)), DataError, r"one logit for each class.*that is \(2, 10\), but got \(2, 3\)"),
        (Outputs(torch.full((2, 10), float("nan"))), ModelError, "finite logits"),
    ],
)
def test_what_is_no_classifier_of_images_is_told(model: nn.Module, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        check_outputs(model, Data.digits())


def test_what_a_file_imports_is_copied_also_where_an_editor_marked_its_encoding(tmp_path: Path) -> None:
    (tmp_path / "net_with_a_mark.py").write_text("from parts_of_net import Net\n", encoding="utf-8-sig")
    (tmp_path / "parts_of_net.py").write_text("class Net: ...\n")
    assert set(code_of(f"{tmp_path}/net_with_a_mark.py:Net")) == {"net_with_a_mark.py", "parts_of_net.py"}
