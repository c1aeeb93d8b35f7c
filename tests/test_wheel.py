"""A wheel built from the sdist, installed away from the checkout, has everything that a run needs."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from making import make_rows

from alignlab import losses

ROOT = Path(__file__).resolve().parent.parent


def run(*words, cwd, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env=environment | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that holds the wheel, and sees this one's packages but not the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", "build", "dist", "runs", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, copy, symlinks=True, ignore=left_out)
    # Without --sdist or --wheel, `build` makes the wheel from the sdist.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(copy), cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    site = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    run(sys.executable, *install, cwd=folder)
    for path in map(Path, sys.path):
        if path.name == "site-packages":
            with (site / "others.pth").open("a") as file:
                file.write(f"{path}\n")
    return python


def test_it_is_the_wheel_that_runs(python, tmp_path):
    path = run(str(python), "-c", "import alignlab.losses; print(alignlab.losses.__file__)", cwd=tmp_path)
    assert Path(path.strip()).is_relative_to(python.parents[1])


def test_losses(python, tmp_path):
    shown = run(str(python), "-m", "alignlab", "losses", cwd=tmp_path)
    for name in losses.names():
        assert f"│ {name} " in shown


def test_train_with_a_shipped_config(python, tmp_path, model_path):
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in make_rows(12)), encoding="utf-8")
    overrides = ["--model.name_or_path", str(model_path), "--data.eval_rows", "2", "--max_steps", "2"]
    run(str(python), "-m", "alignlab", "train", "dpo", *overrides, cwd=tmp_path)
    assert (tmp_path / "runs" / "dpo" / "model.safetensors").is_file()
    assert (tmp_path / "runs" / "dpo" / "report.html").is_file()  # its template is a file of the package


def test_metrics_load_by_path(python, tmp_path):
    load = "evaluate.load(metrics.path('win_rate')).compute(outcomes=[1.0, 0.5])"
    script = f"import evaluate; from alignlab import metrics; print({load})"
    shown = run(str(python), "-c", script, cwd=tmp_path, HF_HOME=str(tmp_path / "home"), HF_HUB_OFFLINE="1")
    assert "'win_rate': 0.75" in shown
