"""`pcl-clora serve` on the command line: what it says, and its exit code."""

import socket

import pytest

from pcl_clora.cli import main


def run(*arguments):
    with pytest.raises(SystemExit) as stop:
        main(["serve", *map(str, arguments)])
    return stop.value.code


def test_a_model_has_to_be_named(capsys):
    assert run() == 2
    assert "give --run FOLDER or --adapter FILE" in capsys.readouterr().err


def test_a_port_in_use_is_one_line(capsys, classification_run):
    pytest.importorskip("uvicorn")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run("--run", classification_run, "--port", port, "--no-app") == 2
    said = capsys.readouterr().err
    assert f"error: Port {port} of 127.0.0.1 is in use; choose another with --port, or 0" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--types", "ply,pkl"), "types=.pkl cannot be served; choose from"),
        (("--run", "no_such_run"), "no_such_run"),
    ],
)
def test_what_cannot_be_served_is_one_line(capsys, classification_run, arguments, said):
    pytest.importorskip("uvicorn")
    assert run("--run", classification_run, "--port", "0", "--no-app", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_space_is_written_with_its_title_and_limits(capsys, classification_run, tmp_path):
    pytest.importorskip("fastapi")
    adapter = classification_run / "best" / "adapter.safetensors"
    folder = tmp_path / "demo"
    limits = ("--queue", "7", "--max-points", "5000")
    assert run("--adapter", adapter, "--space", folder, "--title", "What: is it?", *limits) == 0
    assert "upload it as it is" in capsys.readouterr().out
    assert 'title: "What: is it?"' in (folder / "README.md").read_text()
    program = (folder / "app.py").read_text()
    assert "queue=7" in program
    assert "max_points=5000" in program
    assert run("--adapter", adapter, "--space", folder) == 2
