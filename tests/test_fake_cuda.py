"""A whole step of the trainer on fake CUDA tensors: the flash path, its autograd, clipping and the fused optimiser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import MISTAKES, STEPS

SUPPORT = Path(__file__).parent / "support"
COMPILER = shutil.which("c++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.compiler,
    pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler (c++), found none"),
    pytest.mark.skipif(
        torch.version.cuda is not None, reason="needs a torch built without CUDA: its own asks the driver"
    ),
    pytest.mark.skipif(sys.platform != "linux", reason="needs a library to be loaded before torch, as Linux does it"),
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process with a guard for fake CUDA tensors found in every step and of every mistake."""
    folder, home = tmp_path_factory.mktemp("fake_cuda"), Path(torch.__file__).parent
    library, out = folder / "guard.so", folder / "found.json"
    command = [COMPILER or "", "-shared", "-fPIC", "-std=c++20", str(SUPPORT / "fake_cuda.cpp"), "-o", str(library)]
    command += [f"-I{home / 'include'}", f"-L{home / 'lib'}", f"-Wl,-rpath,{home / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run(command, check=True, timeout=300)
    env = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([str(SUPPORT), *sys.path])
    script = [sys.executable, str(SUPPORT / "fake_cuda.py"), str(out)]
    done = subprocess.run(script, env=env, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.mark.parametrize("step", STEPS)
def test_a_whole_step_runs_through_flash_attention_and_stays_on_the_device(step: str, found: dict[str, Any]) -> None:
    """Every layer calls the kernel once; checkpointing, and a reference beside the policy, have the forward twice.

    Objective, norm, gradients and both moments of each of them lie on the device, and the host waited for none.
    """
    twice = "gradient_checkpointing" in STEPS[step] or "reference" in STEPS[step]
    assert found[step] == {
        "forward": 2 * (1 + twice),
        "backward": 2,
        "places": ["cuda:0"],
        "moments": 2 * (2 * 14 if STEPS[step]["half"] else 21),
    }


def test_soft_capped_attention_has_a_backward_there(found: dict[str, Any]) -> None:
    """Of FlexAttention under a window: everything has its shape and dtype, and the host waited for no number."""
    whole, shared = (f"(631, {heads}, 64) torch.bfloat16 cuda:0" for heads in (8, 2))
    assert found["soft-capped"] == [whole, whole, shared, shared]


ERRORS = {
    "targets on the CPU": "at least two devices, cuda:0 and cpu",
    "offsets on the CPU": "at least two devices, cuda:0 and cpu",
    "ids on the CPU": "at least two devices, cuda:0 and cpu",
    "a plan on the CPU": "UnsupportedAttention: a plan of torch.int32 on cpu: int32 on cuda:0 is taken",
    "a number read by the host": "aten._local_scalar_dense.default",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_caught(mistake: str, found: dict[str, Any]) -> None:
    assert ERRORS[mistake] in found[mistake]
