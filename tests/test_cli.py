"""The command line: data on stdout, progress and errors on stderr, an exit code for each kind of end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from PIL import Image

from dneuro import cli
from dneuro.engine.executors import ThreadExecutor
from dneuro.extract import task
from dneuro.jobs import face, planning
from dneuro.nets.convnet import ConvNet

WriteJob = Callable[..., Path]


@dataclass
class Ended:
    code: int
    out: str
    err: str

    @property
    def hint(self) -> str:
        return self.err.partition("hint: ")[2]


Call = Callable[..., Ended]


@pytest.fixture
def call(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    threads_as_machines: ThreadExecutor,
) -> Call:
    """Return a function that runs the command line in this process, on threads in the place of workers."""

    monkeypatch.chdir(tmp_path)

    def run(*args: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["dneuro", *map(str, args)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        return Ended(code if isinstance(code, int) else 1, *capsys.readouterr())

    return run


def test_run__prints_where_the_results_are(call: Call, write_job: WriteJob) -> None:
    job = write_job({"moments": None})
    done = call("run", job)
    assert done.code == 0, done.err
    assert done.out == f"store   {job.parent / 'acts.zarr'}\n"
    assert "Traceback" not in done.err


def test_run__draws_progress_as_plain_lines_on_stderr(call: Call, write_job: WriteJob) -> None:
    done = call("run", write_job({"moments": None}))
    lines = done.err.splitlines()
    assert "extract: 0 of 40 images" in lines
    assert any(line.startswith("extract: 40 of 40 images, ") and "images/s" in line for line in lines)
    assert any(line.startswith("moments: 2 of 2 layers") for line in lines)
    assert not {"\r", "\x1b"} & set(done.err), "no control characters where there is no terminal"


def test_run__quietly_shows_warnings_alone(
    call: Call, write_job: WriteJob, make_photos: Callable[..., dict[str, Any]]
) -> None:
    assert call("run", write_job(), "--quiet").err == ""
    done = call("run", write_job(store="torn.zarr", **make_photos(20, [3])), "-q")
    assert done.code == 0
    (line,) = done.err.splitlines()
    assert line.startswith("extract: masked cat/003.png: ")


def test_run__prints_json(call: Call, write_job: WriteJob, make_photos: Callable[..., dict[str, Any]]) -> None:
    job = write_job({"moments": None}, {"report": None}, **make_photos(20, [3]))
    first, again = (json.loads(call("run", job, "--json").out) for _ in range(2))
    assert first["store"] == str(job.parent / "acts.zarr")
    assert Path(first["report"]).is_file()
    assert (first["images"], first["units"], first["units_done_before"]) == (20, 2, 0)
    assert (first["results_computed"], first["results_kept"]) == (2, 0)
    assert [name for name, _ in first["masked"]] == ["cat/003.png"]
    assert (again["images"], again["units_done_before"], again["results_kept"]) == (0, 2, 2)
    assert again["masked"] == first["masked"]


def test_run__takes_settings_in_place_of_the_file(call: Call, write_job: WriteJob) -> None:
    job = write_job({"svd": {"rank": 2, "layer": "fc"}})
    done = call("run", job, "--set", "steps.svd.rank=4", "--set", "images.sample=20")
    assert done.code == 0, done.err
    found = zarr.open_array(job.parent / "acts.zarr", path="results/svd/fc/score", mode="r")
    assert found.shape == (20, 4)


def test_run__finds_the_jobs_that_are_shipped(call: Call) -> None:
    done = call("plan", "demo", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["job"] == "demo"


def test_plan__prints_what_a_job_will_cost(call: Call, write_job: WriteJob) -> None:
    job = write_job({"moments": None}, {"svd": {"rank": 2, "layer": "fc"}})
    done = call("plan", job)
    assert done.code == 0, done.err
    assert done.err == ""
    for words in ("small: 40 images, dneuro:convnet", "3 units", "ReLU, 10×12×12, keep full", "with extract", "tsqr"):
        assert words in done.out
    found = json.loads(call("plan", job, "--json").out)
    assert found["extract"]["units"] == 3
    assert [(step["step"], step["layer"]) for step in found["steps"]] == [
        ("moments", "relu1"), ("moments", "fc"), ("svd", "fc")]  # fmt: skip
    assert not (job.parent / "acts.zarr").exists()


def test_plan__says_what_the_weights_lack(call: Call, write_job: WriteJob, tmp_path: Path) -> None:
    state = {key: value for key, value in ConvNet().state_dict().items() if not key.startswith("fc")}
    torch.save(state, tmp_path / "conv.pth")
    job = write_job(network={"name": "dneuro:convnet", "weights": str(tmp_path / "conv.pth")}, layers=["relu1"])
    said = "no weights for fc: not needed for these layers, but there are no predictions"
    assert f"note: {said}" in " ".join(call("plan", job).out.split())
    assert json.loads(call("plan", job, "--json").out)["notes"] == [said]


def test_plan__shows_what_would_be_sent_to_a_cluster(call: Call, write_job: WriteJob, tmp_path: Path) -> None:
    profile = tmp_path / "site.yaml"
    profile.write_text("backend: slurm\nstate: state\npools: {extract: {workers: 3, memory: 4GiB, partition: long}}\n")
    done = call("plan", write_job(), "--cluster", profile)
    assert done.code == 0, done.err
    for words in ("### driver, sbatch", "### pool extract, sbatch × 3", "#SBATCH -p long", "#SBATCH --mem=4096M"):
        assert words in done.out
    assert not (tmp_path / "state").exists(), "nothing was started, and nothing written"


def test_layers__lists_what_can_be_tapped(call: Call) -> None:
    found = json.loads(call("layers", "dneuro:convnet", "--json").out)
    shapes = {layer["name"]: layer["shape"] for layer in found}
    assert shapes["relu1"] == [10, 12, 12]
    assert list(shapes) == ["conv1", "pool1", "relu1", "conv2", "pool2", "relu2", "flatten", "fc"]
    conv1 = found[0]
    assert conv1["receptive_field"] == {"size": [5, 5], "stride": [1, 1], "start": [0, 0]}
    assert (conv1["bytes_per_image"], conv1["bytes"]) == (4 * 10 * 24 * 24, 50_000 * 4 * 10 * 24 * 24)
    heading, *lines = call("layers", "dneuro:convnet", "--images", "1000").out.splitlines()
    assert heading.split("  ")[-1].strip() == "1,000 images"
    assert [line.split()[0] for line in lines] == list(shapes)
    assert lines[0].endswith("22 MiB")


def test_layers__of_the_network_of_a_job_and_of_one_without_a_usual_size(
    call: Call, write_job: WriteJob, tmp_path: Path
) -> None:
    assert json.loads(call("layers", write_job(), "--json").out)[0]["name"] == "conv1"
    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())\n"
    )
    name = f"python:{tmp_path / 'mine.py'}:make"
    assert [layer["shape"] for layer in json.loads(call("layers", name, "--size", "32", "--json").out)] == [
        [8, 30, 30], [8, 30, 30]]  # fmt: skip
    refused = call("layers", name)
    assert refused.code == 2
    assert "--size" in refused.err


def test_report__writes_the_pages_again(call: Call, write_job: WriteJob) -> None:
    job = write_job({"moments": None})
    call("run", job)
    done = call("report", job.parent / "acts.zarr", "--out", job.parent / "pages")
    assert done.code == 0, done.err
    assert done.out == f"{job.parent / 'pages' / 'index.html'}\n"
    assert (job.parent / "pages" / "index.html").is_file()


def test_version__is_that_of_the_package(call: Call) -> None:
    from importlib.metadata import version

    assert call("version").out.strip() == version("dneuro")


def test_help__does_not_wait_for_heavy_imports() -> None:
    program = (
        "import sys; sys.argv = ['dneuro', '--help']\n"
        "from dneuro.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: print(end.code, file=sys.stderr)\n"
        "heavy = {'numpy', 'torch', 'torchvision', 'xarray', 'zarr', 'dask', 'distributed', 'matplotlib', 'pandas',"
        " 'sklearn', 'scipy', 'PIL', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.split("\n")[:2] == ["0", "[]"]
    for command in ("run", "plan", "layers", "report", "version"):
        assert command in done.stdout


# ── what goes wrong ──────────────────────────────────────────────────────────────────────────────────────────────────


def photo(path: Path, side: int = 28) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side), 7, np.uint8)).save(path)


def folder(root: Path) -> dict[str, Any]:
    network = {"name": "dneuro:convnet", "weights": "none", "preprocessing": {"color": "grey"}}
    return {"images": {"source": "folder", "root": str(root)}, "network": network}


def unknown_layer(tmp: Path) -> dict[str, Any]:
    return {"layers": ["relu_1"]}


def missing_folder(tmp: Path) -> dict[str, Any]:
    return folder(tmp / "nowhere")


def empty_class(tmp: Path) -> dict[str, Any]:
    photo(tmp / "photos/cat/1.png")
    (tmp / "photos/dog").mkdir()
    return folder(tmp / "photos")


def wrong_label_count(tmp: Path) -> dict[str, Any]:
    np.savez(tmp / "a.npz", images=np.zeros((20, 28, 28), np.uint8), labels=np.zeros(19, np.int64))
    return {"images": {"source": "array", "root": str(tmp / "a.npz")}}


def wrong_weights(tmp: Path) -> dict[str, Any]:
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp / "w.pth")
    return {"network": {"name": "dneuro:convnet", "weights": str(tmp / "w.pth")}}


def missing_weights(tmp: Path) -> dict[str, Any]:
    return {"network": {"name": "dneuro:convnet", "weights": str(tmp / "none.pth")}}


def unknown_key(tmp: Path) -> dict[str, Any]:
    return {"batchsize": 4}


def unknown_network(tmp: Path) -> dict[str, Any]:
    return {"network": {"name": "torchvision:alexnett"}}


def sizes_that_differ(tmp: Path) -> dict[str, Any]:
    photo(tmp / "photos/cat/1.png")
    photo(tmp / "photos/cat/2.png", side=40)
    return folder(tmp / "photos")


def nan_weights(tmp: Path) -> dict[str, Any]:
    module = ConvNet()
    with torch.no_grad():
        module.conv2.weight[7] = torch.nan
    torch.save(module.state_dict(), tmp / "nan.pth")
    return {"network": {"name": "dneuro:convnet", "weights": str(tmp / "nan.pth")}, "layers": ["pool2"]}


def store_is_a_folder(tmp: Path) -> dict[str, Any]:
    (tmp / "acts.zarr").mkdir()
    (tmp / "acts.zarr" / "thesis.tex").write_text("mine")
    return {}


def store_is_an_array(tmp: Path) -> dict[str, Any]:
    zarr.create_array(tmp / "acts.zarr", shape=(3,), dtype="f4")
    return {}


BAD: dict[Callable[[Path], dict[str, Any]], tuple[int, str, str]] = {
    unknown_layer: (2, "dneuro:convnet has no layer 'relu_1'", "did you mean 'relu1'"),
    missing_folder: (2, "nowhere", ""),
    empty_class: (2, "dog is empty", "rmdir"),
    wrong_label_count: (2, "19 labels, but there are 20 images", ""),
    wrong_weights: (2, "does not fit dneuro:convnet", "weights"),
    missing_weights: (2, "none.pth does not exist", "weights:"),
    unknown_key: (2, "unknown key 'batchsize'", "batch"),
    unknown_network: (2, "unknown network 'torchvision:alexnett'", "'torchvision:alexnet'"),
    sizes_that_differ: (2, "cat/2.png is 40×40 pixels, the first image is 28×28", "resize"),
    nan_weights: (4, "neuron (7, 0, 0) is nan", "weights"),
    store_is_a_folder: (2, "is not a store made by dneuro; it is left as it is", "store:"),
    store_is_an_array: (2, "is no Zarr group that can be opened", "store:"),
}


@pytest.mark.parametrize("make", BAD, ids=lambda make: make.__name__.replace("_", " "))
def test_bad_input__ends_with_its_code_what_is_wrong_and_a_way_out(
    call: Call, write_job: WriteJob, tmp_path: Path, make: Callable[[Path], dict[str, Any]]
) -> None:
    code, message, hint = BAD[make]
    done = call("run", write_job(**make(tmp_path)), "--quiet")
    assert (done.code, done.out) == (code, ""), done.err
    assert message in done.err
    assert hint in done.hint
    assert "Traceback" not in done.err


def test_nan__names_layer_image_and_neuron(call: Call, write_job: WriteJob, tmp_path: Path) -> None:
    done = call("run", write_job(**nan_weights(tmp_path)), "-q")
    assert "error: pool2: image " in done.err
    assert done.code == 4


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--set", "nonsense"], "in --set nonsense"),
        (["--set", "steps.svd.rank=4"], "in --set steps.svd.rank=4"),
        (["--set", "images.sample=-1"], "images.sample"),
        (["--cluster", "nowhere"], "nowhere"),
        (["--sett", "a=b"], "--sett"),
    ],
)
def test_bad_options__are_usage_errors(call: Call, write_job: WriteJob, args: list[str], message: str) -> None:
    done = call("run", write_job(), *args)
    assert (done.code, done.out) == (2, "")
    assert message in done.err


def test_unknown_step__is_named_with_its_place_and_the_nearest(call: Call, write_job: WriteJob) -> None:
    done = call("run", write_job({"svdd": {"rank": 2}}))
    assert done.code == 2
    assert "job.yaml:1:" in done.err
    assert "unknown step 'svdd'" in done.err
    assert "'svd'" in done.hint


def test_unknown_job_command_and_store__are_errors_of_their_own(call: Call, tmp_path: Path) -> None:
    assert call("run", "nothing.yaml").code == 2
    assert call("fly").code == 2
    assert call("layers", "torchvision:nonet").code == 2
    missing = call("report", tmp_path / "none.zarr")
    assert missing.code == 4
    assert "there is no store at" in missing.err


def test_memory__that_does_not_suffice_is_said_with_numbers(call: Call, write_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("backend: local\npools: {extract: {workers: 1, memory: 300MiB}}\n")
    for command in ("run", "plan"):
        done = call(command, write_job(), "--cluster", "small.yaml")
        assert (done.code, done.out) == (2, "")
        assert "the limit is 300 MiB; nothing was started" in done.err
        assert done.hint
    assert not (tmp_path / "acts.zarr").exists()


def test_changed_job__ends_with_the_code_of_its_own(call: Call, write_job: WriteJob) -> None:
    assert call("run", write_job(), "-q").code == 0
    done = call("run", write_job(dtype="float16"), "-q")
    assert done.code == 64
    assert "layer fc: full float32 → full float16" in done.err
    assert "another store:" in done.hint


def test_partial__ends_with_the_code_of_its_own(
    call: Call, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = task.batches

    def batches(work: Any, layers: Any, start: int, stop: int) -> Any:
        if start == 16:
            raise ValueError("torn")
        return honest(work, layers, start, stop)

    with monkeypatch.context() as patched:
        patched.setattr(task, "batches", batches)
        done = call("run", write_job(), "--json")
    assert (done.code, done.out) == (3, "")
    assert "1 of 3 units failed" in done.err
    assert "only these units are redone" in done.hint
    again = json.loads(call("run", write_job(), "--json").out)
    assert (again["units_done_before"], again["images"]) == (2, 16)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signal__ends_the_run_as_ctrl_c_does(
    call: Call, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # tests, too, are run under nohup
    job = write_job(images_per_unit=1, batch=1)
    with monkeypatch.context() as patched:
        honest = task.batches

        def batches(work: Any, layers: Any, start: int, stop: int) -> Any:
            if start == 5:
                os.kill(os.getpid(), number)
            return honest(work, layers, start, stop)

        patched.setattr(task, "batches", batches)
        done = call("run", job, "--json")
    assert (done.code, done.out) == (5, "")
    assert "error: stopped by the user; what is done stays done" in done.err
    assert "the same command again goes on from here" in done.hint
    assert signal.signal(number, before) is signal.SIG_DFL
    again = json.loads(call("run", job, "--json").out)
    assert 0 < again["units_done_before"] < 40
    assert again["images"] == 40 - again["units_done_before"]


def test_interrupt__before_anything_runs_is_no_traceback(
    call: Call, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planning, "plan_job", stop)
    monkeypatch.setattr(face, "plan_any", stop)
    for command in ("run", "plan"):
        done = call(command, write_job())
        assert done.code == 5
        assert "error: stopped by the user" in done.err


def test_bug__is_shown_whole(call: Call, write_job: WriteJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """What dneuro did not raise on purpose is not dressed up as something else."""

    def fail(*_: Any) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(planning, "plan_job", fail)
    monkeypatch.setattr(sys, "argv", ["dneuro", "plan", str(write_job())])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_verify__ends_by_what_it_found(call: Call, write_job: WriteJob, tmp_path: Path) -> None:
    call("run", write_job("moments"), "-q")
    done = call("verify", "acts.zarr", "-q")
    assert (done.code, done.out) == (0, "acts.zarr: 9 units, all as it was written\n")
    (tmp_path / "acts.zarr.units/extract/fc/00002.done").unlink()
    done = call("verify", "acts.zarr", "-q")
    assert done.code == 3
    assert "missing: layers/fc, unit 2 (images 32 to 39): is not marked as done" in done.out
    zarr.open_array(tmp_path / "acts.zarr", path="layers/fc/activation", mode="r+")[17, 0] = 9
    done = call("verify", "acts.zarr", "-q", "--json")
    found = json.loads(done.out)
    assert (done.code, found["damaged"], found["missing"]) == (4, 1, 1)
    assert found["findings"][0]["images"] == [16, 31]
    assert call("verify", "acts.zarr", "-q", "--repair").code == 3
    assert call("run", write_job("moments"), "-q").code == 0
    assert call("verify", "acts.zarr", "-q").code == 0
    assert call("verify", "none.zarr", "-q").code == 4


def test_run__where_a_store_cannot_be(call: Call, write_job: WriteJob, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("precious")
    done = call("run", write_job(), "--set", f"store={tmp_path / 'afile'}", "-q")
    assert (done.code, "is not a store made by dneuro" in done.err) == (2, True)
    assert (tmp_path / "afile").read_text() == "precious"
    done = call("run", write_job(), "--set", "store=/proc/acts.zarr", "-q")
    assert done.code == 4
    assert "error: the folder /proc/acts.zarr.units/attempts cannot be made: No such file or directory" in done.err
    assert "another path as store:" in done.hint
