"""Whatever happens to a run, a record says so and the sweep goes on. All on the real program."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import RECIPES, SMALL, qbench
from programs import Program

from qbench.pipelines import known
from qbench.results import store
from qbench.results.record import Record
from qbench.run.plan import plan

pytestmark = pytest.mark.slow


def _record(out: Path, recipe: str) -> Record:
    (path,) = out.glob(f"*/{recipe}-*/record.json")
    return store.read(path)


def test_complete_runs_are_not_run_again(finished: Path) -> None:
    before = _record(finished, "int8")
    done = qbench("run", str(RECIPES / "int8.yaml"), *SMALL, "--device=cpu", f"--out={finished}")
    assert done.returncode == 0
    assert done.stdout.count("complete already, not run again") == 2
    assert _record(finished, "int8") == before


def test_videos_and_contact_sheet_are_there(finished: Path) -> None:
    import av
    from PIL import Image

    (folder,) = finished.glob("*/int8-*")
    videos = sorted((folder / "videos").glob("*.mp4"))
    assert len(videos) == 2
    with av.open(str(videos[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 17
    with Image.open(folder / "contact.png") as sheet:
        assert sheet.width == 6 * 128


def test_time_out_becomes_a_record_and_the_sweep_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "recipes"
    shutil.copytree(RECIPES, folder)
    (folder / "short.yaml").write_text("extends: fp32.yaml\nmeasure: {timeout_s: 2.0}\n")
    (folder / "after.yaml").write_text("extends: tensorrt.yaml\nreference: after\n")
    words = [str(folder / "short.yaml"), str(folder / "after.yaml")]
    done = qbench("run", *words, "--set=reference=null", "--device=cpu", f"--out={tmp_path}")
    assert done.returncode == 1
    record = _record(tmp_path, "short")
    assert record.status == "timeout"
    assert "measure.timeout_s = 2 s" in record.reason
    assert record.stage
    (log,) = tmp_path.glob("*/short-*/log.txt")
    assert "most recent call first" in log.read_text()  # where it was
    assert _record(tmp_path, "after").status == "skipped"


def test_out_of_memory_becomes_a_record_with_its_stage(tmp_path: Path) -> None:
    """The address space is limited, so that a far too large video cannot be allocated."""
    done = qbench(
        "run",
        str(RECIPES / "fp32.yaml"),
        *SMALL,
        "--set=prompts.count=1",
        "--set=generation.frames=33",
        "--set=generation.height=8192",
        "--set=generation.width=8192",
        "--device=cpu",
        f"--out={tmp_path}",
        limits={"RLIMIT_AS": 7_000_000 * 2**10},
    )
    assert done.returncode == 1
    record = _record(tmp_path, "fp32")
    assert record.status == "oom", record.reason
    assert record.stage in ("denoise", "decode")
    assert "Traceback" not in done.stdout + done.stderr
    assert "Traceback" in (next(tmp_path.glob("*/fp32-*")) / "log.txt").read_text()


def _start(out: Path, *words: str) -> Program:
    return Program("qbench", "run", *words, "--device=cpu", f"--out={out}")


def _runner(parent: int) -> int:
    """The process of the run, once it has started."""
    import psutil

    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        with contextlib.suppress(psutil.NoSuchProcess):  # short ones come and go
            for server in psutil.Process(parent).children():
                if "forkserver" in " ".join([server.name(), *server.cmdline()]):
                    for child in server.children():
                        return child.pid
        time.sleep(0.05)
    raise AssertionError("no run was started")


def test_libraries_imported_beside_a_gpu_never_start_its_driver(tmp_path: Path) -> None:
    """One that tries is left to the runs: no process forked from here could use the GPU else."""
    (tmp_path / "eager.py").write_text("import torch\ntorch.cuda._lazy_init()\n")
    (tmp_path / "asking.py").write_text(
        "import torch\nfound = torch.cuda.get_device_capability()\n"
    )
    (tmp_path / "pynvml.py").write_text(
        "def nvmlInit(): pass\n"
        "def nvmlDeviceGetCount(): return 2\n"
        "def nvmlDeviceGetHandleByIndex(index): return index\n"
        "def nvmlDeviceGetCudaComputeCapability(handle): return (9, 0)\n"
    )
    code = (
        "import os, sys, torch\n"
        "started = []\n"
        "torch.cuda._lazy_init = lambda: started.append(True)\n"
        "before = torch.cuda.get_device_capability, torch.cuda._lazy_init\n"
        "barred = ('diffusers', 'transformers', 'torchao', 'scipy')\n"
        "sys.modules.update(dict.fromkeys(barred))  # so that nothing large is imported before\n"
        "from qbench.run import preload\n"
        "preload.MODULES = ('eager', 'asking', 'json.tool')\n"
        "preload._import_beside_a_gpu()\n"
        "assert (torch.cuda.get_device_capability, torch.cuda._lazy_init) == before\n"
        "assert 'eager' not in sys.modules and 'json.tool' in sys.modules\n"
        "assert sys.modules['asking'].found == (9, 0)\n"
        "assert not started\n"
        "assert 'PYTORCH_NVML_BASED_CUDA_CHECK' not in os.environ\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, timeout=120)
    assert done.returncode == 0


def test_crash_becomes_a_record_and_the_sweep_goes_on(tmp_path: Path) -> None:
    process = _start(tmp_path, str(RECIPES / "fp32.yaml"), str(RECIPES / "tensorrt.yaml"), *SMALL)
    os.kill(_runner(process.pid), signal.SIGSEGV)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    record = _record(tmp_path, "fp32")
    assert record.status == "crashed"
    assert "SIGSEGV" in record.reason
    assert _record(tmp_path, "tensorrt").status == "skipped"
    assert "Traceback" not in out + err


def test_interrupt_leaves_a_record_and_no_process(tmp_path: Path) -> None:
    import psutil

    process = _start(tmp_path, str(RECIPES / "fp32.yaml"), str(RECIPES / "tensorrt.yaml"), *SMALL)
    runner = _runner(process.pid)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert _record(tmp_path, "fp32").status == "interrupted"
    assert not list(tmp_path.glob("*/tensorrt-*"))
    assert not psutil.pid_exists(runner)
    assert "Traceback" not in out + err


def test_reference_is_found_beside_or_above_and_takes_all_but_the_variant() -> None:
    changes = {"generation.steps": "3", "variant.dtype": "fp16"}
    reference, variant = plan([RECIPES / "ladder" / "int4.yaml"], changes)
    assert (reference.recipe.name, variant.recipe.name) == ("fp32", "ladder/int4")
    assert reference.implied
    assert reference.recipe.generation.steps == variant.recipe.generation.steps == 3
    assert reference.recipe.variant.dtype == "fp32"
    assert variant.recipe.variant.dtype == "fp16"


def test_terminated_sweep_leaves_a_record_too(tmp_path: Path) -> None:
    """Schedulers send SIGTERM; it ends a sweep as Ctrl-C does."""
    process = _start(tmp_path, str(RECIPES / "fp32.yaml"), *SMALL)
    _runner(process.pid)
    process.terminate()
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert _record(tmp_path, "fp32").status == "interrupted"


def test_model_that_cannot_be_loaded_is_failed_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text(
        '{"_class_name": "CogVideoXPipeline", "vae": ["diffusers", "AutoencoderKLCogVideoX"]}'
    )
    words = ["--set=prompts.set=world-v1", f"--model={tmp_path / 'model'}", "--device=cpu"]
    done = qbench("run", str(RECIPES / "fp32.yaml"), *SMALL, *words, f"--out={tmp_path / 'out'}")
    assert done.returncode == 1, done.stdout + done.stderr
    record = _record(tmp_path / "out", "fp32")
    assert record.status == "failed"
    assert "it has no transformer" in record.reason


def test_broken_weights_give_an_invalid_run(tmp_path: Path) -> None:
    """A model whose denoiser returns NaN: it runs, its row stays, and it wins nothing."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "nan-model"
    shutil.copytree(known.BUNDLED / "tiny-cogvideox", folder)
    weights = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    state["proj_out.bias"][:] = float("nan")
    save_file(state, weights, metadata={"format": "pt"})
    done = qbench(
        "run",
        str(RECIPES / "fp32.yaml"),
        *SMALL,
        f"--model={folder}",
        "--prompts=world-v1",
        "--device=cpu",
        f"--out={tmp_path}",
    )
    record = _record(tmp_path, "fp32")
    assert record.status == "invalid", done.stdout + done.stderr
    assert record.reason.startswith("NaN")
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["run", "recipes/int9.yaml"], "did you mean 'int8.yaml'?"),
        (["run", "recipes/int8.yaml", "--model=tiny-cogvideo"], "did you mean 'tiny-cogvideox'?"),
        (["run", "recipes/int8.yaml", "--prompts=word-v1"], "did you mean 'world-v1'?"),
        (["run", "recipes/int8.yaml", "--set=prompts.count=9999"], "the most is 256"),
        (["run", "recipes/int8.yaml", "--device=cuba"], "did you mean 'cuda'?"),
        (["run", "recipes/int8.yaml", "--set=generation.frames=14"], "to ask for is 17"),
        (["validate", "recipes", "--set=generation.height=70"], "the nearest is 64"),
        (["validate", "recipes", "--set=variant.dtype=fp61"], "did you mean 'fp16'?"),
        (["report", "nowhere"], "no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(words: list[str], hint: str, tmp_path: Path) -> None:
    out = [f"--out={tmp_path / 'out'}"] if words[0] != "validate" else []
    done = qbench(*words, *out)
    assert done.returncode == 2
    assert hint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
