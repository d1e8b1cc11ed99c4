from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

import understudy
from understudy.cli import main
from understudy.cli.entry import COMMANDS
from understudy.cli.help import help_text

ALLOWED = Path(__file__).parent.parent / "assets" / "flags.txt"


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit, match="0"):
        main(args)
    return capsys.readouterr().out


def flags_in(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z0-9][a-z0-9.-]*", text))


def listed(command: str, *, everything: bool = True) -> set[str]:
    text = help_text(command, COMMANDS[command], everything=everything, width=100).plain
    return {
        flag for line in text.splitlines() if line.startswith("  --") for flag in flags_in(line.partition("   ")[0])
    }


def test_no_new_flags() -> None:
    # A flag that is added or removed is a decision: change the list together with the field.
    found = {f"{command} {flag}" for command in COMMANDS for flag in listed(command)}
    assert sorted(found) == sorted(ALLOWED.read_text().splitlines())


@pytest.mark.parametrize("command", COMMANDS)
def test_all_flags_that_are_understood_are_in_the_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        tyro.cli(COMMANDS[command], args=["--help"], config=(tyro.conf.DisallowNone,))
    assert listed(command) == flags_in(capsys.readouterr().out.partition("positional")[2]) - {"--help"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example_and_fits_on_two_screens(command: str) -> None:
    lines = help_text(command, COMMANDS[command], everything=False, width=100).plain.splitlines()
    assert f"  understudy {command}" in "\n".join(lines)
    assert len(lines) <= 100 and max(map(len, lines)) <= 100


def test_the_short_help_has_the_common_flags_and_says_where_the_others_are() -> None:
    assert {"--weights", "--mean", "--params", "--dry-run", "--final.training.epochs"} <= listed(
        "compress", everything=False
    )
    short = help_text("compress", COMMANDS["compress"], everything=False, width=100).plain
    rest = len(listed("compress")) - len(listed("compress", everything=False))
    assert rest > 10 and re.search(r"--help-all shows the other \d+ settings", short)


def test_defaults_are_those_of_the_table_that_a_setting_stands_in(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(printed(capsys, "compress", "--help").split())
    for table, epochs in (("candidates", 5), ("final", 30)):
        assert f"--{table}.training.epochs INT Passes over the training split. [default: {epochs}]" in shown


def test_what_is_left_out_is_said_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    shown = " ".join(printed(capsys, "compress", "--help-all").split())
    assert "--seed INT Random seed of the search and of every student in it. [default: 0]" in shown
    # Decore's network learns at a rate of its own.
    assert "--final.training.lr FLOAT Peak learning rate. Left out: 0.1 for sgd" in shown
    assert "--decore.training.lr FLOAT Peak learning rate. [default: 0.001]" in shown


def test_the_overview_begins_with_what_users_have(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys)
    assert text == printed(capsys, "--help")
    places = [text.index(word) for word in ("image", "model.py:make", "--mean", "torchvision:", "zoo:", "Commands")]
    assert places == sorted(places)
    assert all(re.search(rf"^  {command} ", text, re.MULTILINE) for command in COMMANDS)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, "--version") == f"understudy {understudy.__version__}\n"


@pytest.mark.parametrize(("command", "needed"), [("compress", "MODEL"), ("teach", "MODEL"), ("export", "STUDENT")])
def test_a_command_alone_says_what_it_needs(command: str, needed: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command])
    shown = " ".join("".join(capsys.readouterr()).split())
    assert re.search(f"Missing from understudy {command}.* {needed} .*for example: understudy {command} ", shown)


def test_a_value_of_another_type_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["teach", "zoo:resnet20", "--data", "digits", "--out", "x", "--seed", "x"])
    assert "".join(capsys.readouterr()).count("Error parsing --seed: invalid literal") == 1


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["compres", "--help"], "must be one of inspect, .*but got 'compres' \\(did you mean 'compress'\\?\\)"),
        (["zoo:resnet20"], "a command must be one of"),
    ],
)
def test_an_unknown_command_is_an_error(args: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    assert re.search(text, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (["compress", "--parms", "10x", "model.py:make", "--data", "x"], "'--parms' (did you mean '--params'?)"),
        (["compress", "--trust-cod", "teachers/x", "--data", "x"], "'--trust-cod' (did you mean '--trust-code'?)"),
        (["teach", "--epochs=3", "zoo:vgg11", "--out", "x"], "'--epochs' (did you mean '--training.epochs'?)"),
        (["teach", "-q", "--out", "x", "--dta", "x"], "got '-q', '--dta' (did you mean '--data'?)"),
        (["latency", "--bach", "1", "8", "runs/x"], "'--bach' (did you mean '--batch'?)"),
    ],
)
def test_misspelt_flags_are_named_wherever_they_stand(
    args: list[str], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args) == 2
    shown = capsys.readouterr()
    assert text in " ".join(shown.err.split()) and f"understudy {args[0]} --help-all" in shown.err
    assert shown.out == ""


def test_what_is_no_flag_is_not_taken_for_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["compress", "model.py:make", "another", "--trust_code", "--mean", "-0.5", "--data", "x"])
    shown = capsys.readouterr()
    assert "another" in shown.out + shown.err


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom understudy.cli import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: print([x for x in ('torch', 'optuna') if x in sys.modules])"
    )
    for args in (["--help"], ["compress", "--help"]):
        done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
        assert done.stdout.endswith("[]\n")


def test_a_reader_that_closes_early_ends_a_command_as_it_ends_others() -> None:
    code = (
        "import sys\nfrom understudy.cli import main\nfrom understudy.cli.common import out\n"
        "from understudy.cli.runs import Runs\n"
        "Runs.run = lambda self, typed: [out.print('x' * 5000) for _ in range(100)]\nsys.exit(main(['runs']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 141


@pytest.mark.skipif(sys.platform == "win32", reason="a shell that closes what is printed to")
@pytest.mark.parametrize("how", ["PYTHONIOENCODING=ascii {}", "{} >&-", "{} <&-"])
def test_a_command_ends_well_whatever_it_prints_to(how: str) -> None:
    code = (
        "import sys\nfrom understudy.cli import main\nfrom understudy.cli.common import out\n"
        "from understudy.cli.runs import Runs\n"
        "Runs.run = lambda self, typed: out.print('± ✓') or 0\nsys.exit(main(['runs']))"
    )
    command = how.format(shlex.join([sys.executable, "-c", code]))
    done = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
