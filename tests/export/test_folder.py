from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import understudy as us
from tests.support.alone import run_alone
from tests.support.cards import card
from tests.support.tiny import make, squeeze, teach_tiny
from understudy.cli import main
from understudy.core.errors import ConfigError, ExportError, ExtraError
from understudy.core.files import one_writer, write_json
from understudy.data import Data
from understudy.export import folder as exporting
from understudy.export.certificate import verify
from understudy.export.folder import Exported, export_student
from understudy.export.onnx import write_onnx

ALL = ("source", "onnx", "pt2", "int8")
FILES = {
    *("model.py", "model.safetensors", "model.onnx", "model.pt2", "model.int8.onnx"),
    *("input.json", "architecture.json", "README.md", "check.safetensors", "certificate.json"),
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> us.Result:
    folder = tmp_path_factory.mktemp("runs")
    teacher = teach_tiny(folder / "teacher")
    return squeeze(teacher, folder / "run", goal=us.Goal(params="4x"))


@pytest.fixture(scope="module")
def exported(result: us.Result, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student in all formats, not to be changed."""
    return result.export(tmp_path_factory.mktemp("student"), ALL)


@pytest.fixture(scope="module")
def quick(result: us.Result, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A student in the formats that need no more than torch, not to be changed."""
    return result.export(tmp_path_factory.mktemp("student"), ("source", "pt2"))


@pytest.fixture
def copied(quick: Exported, tmp_path: Path) -> Path:
    for file in quick.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


@pytest.mark.slow
def test_all_formats_give_what_the_student_gives(exported: Exported) -> None:
    assert {file.name for file in exported.folder.iterdir()} == FILES
    assert exported.skipped == {}
    assert exported.parity["source"].absolute == 0.0
    assert all(exported.parity[name].relative < 1e-5 for name in ("onnx", "pt2"))
    assert all(exported.parity[name].agreement == 1.0 for name in ("source", "onnx", "pt2"))
    assert exported.parity["int8"].agreement > 0.9


@pytest.mark.slow
def test_the_certificate_has_figures_versions_and_hashes(exported: Exported) -> None:
    certificate = json.loads((exported.folder / "certificate.json").read_text())
    assert set(certificate["files"]) == FILES - {"certificate.json"}
    for name, digest in certificate["files"].items():
        assert hashlib.sha256((exported.folder / name).read_bytes()).hexdigest() == digest
    assert certificate["batches"] == [1, 2, 5]
    assert certificate["inputs"].startswith("test images of") or certificate["inputs"].startswith(
        "validation images of"
    )
    assert {"python", "torch", "onnx", "onnxruntime"} <= set(certificate["versions"])
    assert set(certificate["int8"]["accuracy"]) == {"float", "int8"}


@pytest.mark.slow
def test_no_pickle_and_no_path_of_this_machine(exported: Exported, tmp_path: Path) -> None:
    archive = zipfile.ZipFile(exported.folder / "model.pt2")
    contents = [file.read_bytes() for file in exported.folder.iterdir()]
    contents += [archive.read(name) for name in archive.namelist()]
    machine = [str(Path(__file__).parent.parent.parent), str(tmp_path.parent.parent), str(Path.home()), "site-packages"]
    for content in contents:
        assert not content.startswith(b"\x80\x02") and b"data.pkl" not in content  # a pickle, or a zip with one
        assert not any(path.encode() in content for path in machine if len(path) > 3)


@pytest.mark.slow
def test_the_onnx_file_says_what_goes_in(exported: Exported) -> None:
    model = onnx.load(exported.folder / "model.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    described = json.loads((exported.folder / "input.json").read_text())
    assert set(metadata) == {"mean", "std", "classes", "range", "layout"}
    assert json.loads(metadata["mean"]) == described["mean"] and json.loads(metadata["classes"]) == described["classes"]
    (taken,), (given,) = model.graph.input, model.graph.output
    dims = [dim.dim_param or dim.dim_value for dim in taken.type.tensor_type.shape.dim]
    assert (taken.name, dims, given.name) == ("images", ["batch", 1, 8, 8], "logits")


def test_torch_alone_runs_what_the_readme_says(quick: Exported) -> None:
    readme = (quick.folder / "README.md").read_text()
    blocks = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    assert len(blocks) == 2
    check = 'import sys; sys.path.insert(0, ".")\nimport torch\nimages = torch.zeros(3, 1, 8, 8)\n'
    for block in blocks:
        run_alone(f"{check}{block}\nassert logits.shape == (3, 10)", quick.folder, without=("onnxruntime",))


@pytest.mark.slow
def test_onnxruntime_alone_runs_what_the_readme_says(exported: Exported) -> None:
    readme = (exported.folder / "README.md").read_text()
    blocks = [part.split("```")[0] for part in readme.split("```python\n")[1:]]
    check = "import numpy\nimages = numpy.zeros((3, 1, 8, 8), numpy.float32)\n"
    for block in (blocks[1], blocks[3]):
        run_alone(f"{check}{block}\nassert logits.shape == (3, 10)", exported.folder, without=("torch", "safetensors"))


@pytest.mark.slow
def test_the_model_card_has_budgets_and_figures(exported: Exported) -> None:
    readme = (exported.folder / "README.md").read_text()
    assert "| params 4x |" in readme and "| accuracy on test |" in readme and "| parameters |" in readme
    assert "| source | 0 | 0 | 100.00% of" in readme


@pytest.mark.slow
def test_verify(exported: Exported) -> None:
    found = verify(exported.folder, trust_code=True)
    assert set(found.parity) == set(ALL) and found.not_run == {} and found.files == len(FILES) - 1
    careful = verify(exported.folder)
    assert set(careful.parity) == {"onnx", "pt2", "int8"} and "--trust-code" in careful.not_run["source"]


def test_verify_knows_where_a_run_has_its_export(tmp_path: Path) -> None:
    (tmp_path / "student" / "export").mkdir(parents=True)
    with pytest.raises(ExportError, match=r"has no certificate.json$"):
        verify(tmp_path)
    (tmp_path / "student" / "export" / "certificate.json").write_text("{}")
    with pytest.raises(ExportError, match=r"has no certificate.json: .*export is one$"):
        verify(tmp_path)


def test_what_verify_refuses(copied: Path) -> None:
    (copied / "README.md").write_text("other")
    (copied / "model.pt2").unlink()
    with pytest.raises(ExportError, match=r"but README.md has changed, model.pt2 is missing"):
        verify(copied)
    (copied / "certificate.json").write_text("{")
    with pytest.raises(ExportError, match="must be a JSON file, but is damaged"):
        verify(copied)
    (copied / "certificate.json").unlink()
    with pytest.raises(
        ExportError, match=r"must be one that `understudy export` wrote, but .* has no certificate.json"
    ):
        verify(copied)


def test_verify_runs_the_files(copied: Path) -> None:
    """Files that belong together, but give something else than is said."""
    certificate = json.loads((copied / "certificate.json").read_text())
    text = (copied / "model.py").read_text().replace("return self.classifier(", "return 2 * self.classifier(")
    (copied / "model.py").write_text(text)
    certificate["files"]["model.py"] = hashlib.sha256(text.encode()).hexdigest()
    write_json(copied / "certificate.json", certificate)
    verify(copied)
    with pytest.raises(
        ExportError, match=r"model.py and model.safetensors must give the student's outputs within 0\.0001"
    ):
        verify(copied, trust_code=True)


@pytest.mark.slow
def test_what_cannot_be_run_here_is_said(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    found = verify(exported.folder)
    assert set(found.parity) == {"pt2"} and "onnxruntime must be installed" in found.not_run["onnx"]


def export(folder: Path, student: nn.Module, *formats: str, data: Data | None = None) -> Exported:
    return export_student(folder, student.eval(), card=card(), architecture="{}", formats=formats, data=data)


def test_without_data_random_images_are_compared(tmp_path: Path) -> None:
    found = export(tmp_path, make(), "source")
    assert json.loads((tmp_path / "certificate.json").read_text())["inputs"] == "random"
    assert found.parity["source"].examples == 8 and verify(tmp_path, trust_code=True).files == 6


def test_a_format_that_gives_something_else_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = exporting.program_of
    monkeypatch.setattr(exporting, "program_of", lambda student, example: program(make().eval(), example))
    with pytest.raises(ExportError, match=r"model.pt2 must give the student's outputs within 0\.0001"):
        export(tmp_path, make(), "pt2")
    assert not (tmp_path / "certificate.json").exists()


def test_nothing_of_an_earlier_export_is_left(tmp_path: Path) -> None:
    export(tmp_path, make(), "pt2")
    (tmp_path / "notes.txt").write_text("of the user")
    export(tmp_path, make(), "source")
    names = {file.name for file in tmp_path.iterdir()}
    assert "model.pt2" not in names and {"model.py", "notes.txt"} <= names
    (tmp_path / "notes.txt").write_text("changed")
    assert verify(tmp_path).files == 6


def test_files_that_no_export_left_are_not_lost(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text("def make(): ...")
    with pytest.raises(
        ExportError, match=r"must go into a folder of its own, but .* holds model.py that no export has"
    ):
        export(tmp_path, make(), "pt2")
    assert {file.name: file.read_text() for file in tmp_path.iterdir()} == {"model.py": "def make(): ..."}


def test_a_student_may_be_saved_where_it_is_exported(result: us.Result, tmp_path: Path) -> None:
    result.save(tmp_path / "own")
    result.export(tmp_path / "own", ("source",))
    assert us.load_student(tmp_path / "own", trust_code=True)
    result.save(tmp_path / "other")
    (tmp_path / "other" / "architecture.json").write_text("{}")  # another student's
    with pytest.raises(ExportError, match=r"holds architecture\.json that no export has left"):
        result.export(tmp_path / "other", ("source",))


def test_an_export_that_was_killed_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(exporting, "write_certificate", killed)
        with pytest.raises(KeyboardInterrupt):
            export(tmp_path, make(), "source")
    assert (tmp_path / "model.py").is_file()
    for name in ("model.onnx", ".export"):
        (tmp_path / f"{name}.host-1-2.partial").write_text("half of it")
    (tmp_path / "own.partial").write_text("the user's own")
    with pytest.raises(ExportError, match="certificate"):
        verify(tmp_path)
    export(tmp_path, make(), "source")
    assert verify(tmp_path).files == 6 and not (tmp_path / ".export").exists()
    assert [path.name for path in tmp_path.rglob("*.partial")] == ["own.partial"]


def test_two_exports_do_not_mix_in_one_folder(result: us.Result, tmp_path: Path) -> None:
    with one_writer(tmp_path, "an export", ExportError), pytest.raises(ExportError, match="another one writes"):
        result.export(tmp_path, ("source",))
    assert not list(tmp_path.iterdir())
    assert set(result.export(tmp_path, ("source",)).parity) == {"source"}
    with pytest.raises(ExportError, match=r"accessible, but .*model\.py is not: File exists"):
        result.export(tmp_path / "model.py", ("source",))


def test_a_format_that_cannot_be_written_is_left_out(tmp_path: Path) -> None:
    cut = torch.nn.Sequential(make(), nn.Flatten())
    cut[1].register_forward_hook(lambda module, inputs, output: output)
    found = export(tmp_path, cut, "source", "pt2")
    assert set(found.parity) == {"pt2"} and "'1' has hooks" in found.skipped["source"]
    assert "Not here, source: model.py must hold plain layers" in (tmp_path / "README.md").read_text()
    with pytest.raises(ExportError, match="has hooks"):
        export(tmp_path, cut, "source")


def test_a_file_that_runs_on_some_batches_alone_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_one_size(student: nn.Module, example: torch.Tensor) -> torch.export.ExportedProgram:
        return torch.export.export(student, (example,))

    monkeypatch.setattr(exporting, "program_of", of_one_size)
    found = export(tmp_path, make(), "source", "onnx")
    assert set(found.parity) == {"source"} and not (tmp_path / "model.onnx").exists()
    assert (
        "ONNX Runtime must run the student on batches of any size, but says: [ONNXRuntimeError]"
        in found.skipped["onnx"]
    )


class OneHead(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_what_the_onnx_exporter_does_not_take_is_said(tmp_path: Path) -> None:
    program = torch.export.export(OneHead(), (torch.rand(2, 3, 4),))
    with pytest.raises(ExportError) as refused:
        write_onnx(program, tmp_path / "model.onnx", metadata={})
    assert str(refused.value) == (
        "a student must be one that the ONNX exporter takes, but it says of 'scaled_dot_product_attention': "
        "only 4D query, key, and value are supported"
    )


@pytest.mark.parametrize(
    ("formats", "message"),
    [
        (
            ("source", "onx"),
            r"a format must be one of source, onnx, pt2, int8, hf, but got 'onx' \(did you mean 'onnx'\?\)",
        ),
        (("int8",), "int8 must be calibrated on training images, but no data were given"),
        ((), "a format must be one of"),
    ],
)
def test_what_export_refuses(tmp_path: Path, formats: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(tmp_path, make(), *formats)
    assert list(tmp_path.iterdir()) == []


def test_a_single_format_needs_no_tuple(result: us.Result, tmp_path: Path) -> None:
    assert set(result.export(tmp_path / "own", "source").parity) == {"source"}


def test_a_missing_extra_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    with pytest.raises(
        ExtraError, match=r"onnxscript must be installed, but is not: pip install 'understudy\[export\]'"
    ):
        export(tmp_path, make(), "source", "onnx")
    assert list(tmp_path.iterdir()) == []


def test_commands(result: us.Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result.save(result.run / "student")
    target = str(tmp_path / "app")
    options = ["--data", "digits", "--trust-code", "--out", target]
    assert main(["export", str(result.run), "--to", "source,pt2", *options]) == 0
    text = capsys.readouterr().out
    assert (
        "source: equal to the student bit for bit, 100.00% of" in text and f"next: understudy verify {target}" in text
    )
    assert main(["verify", target]) == 0
    text = capsys.readouterr().out
    assert "files are as they were written" in text and "source was not run: model.py is code" in text
    for arguments, message in (
        (["export", str(tmp_path / "none")], "there is no folder"),
        (["export", str(tmp_path)], "a student folder must have a model.json"),
        (["verify", str(result.run)], "has no certificate.json"),
        (["export", str(result.run), "--to", "tflite", "--trust-code"], "but got 'tflite'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
