"""The registry: names from the folder, options checked against the signature, losses from a user's file."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from alignlab import losses
from alignlab.losses import Loss, LossOutput, Needs, _contract, _examples

MINE = """
import torch
from alignlab.losses import Loss, LossOutput, Needs

class MyLoss(Loss):
    needs = Needs(ref_logps=True)

    def __init__(self, margin: float = 0.1, beta: float = 1.0) -> None:
        super().__init__()
        if margin < 0:
            raise ValueError(f"margin must be >= 0, found {margin}")
        self.margin, self.beta = margin, beta

    def forward(self, batch, totals=None):
        return LossOutput(torch.relu(self.margin - self.beta * (batch.chosen.log_ratios - batch.rejected.log_ratios)))

def my_function(batch, scale: float = 1.0):
    return -scale * (batch.chosen.log_ratios - batch.rejected.log_ratios)

my_function.needs = Needs(ref_logps=True)

class Unrelated:
    pass

value = 3
"""


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_names_are_the_files():
    folder = Path(losses.__file__).parent
    assert losses.names() == sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))
    assert {"dpo", "group_robust", "ipo", "kto", "modpo", "orpo", "sft", "tdpo"} <= set(losses.names())


def test_every_name_builds_and_is_described():
    for name in losses.names():
        description = losses.describe(name)
        assert losses.build(name).needs == description.needs
        assert description.name == name
        assert description.summary.endswith(".")
        assert "``" in description.formula, name
        assert description.source, name
        assert description.elsewhere, name


def test_describe_dpo():
    description = losses.describe("dpo")
    assert description.defaults == {"beta": 0.1, "label_smoothing": 0.0, "smoothing": "conservative"}
    assert description.needs == Needs(ref_logps=True)
    assert description.formula.startswith("``-log sigmoid(z)``")


def test_one_new_file_is_a_new_loss(tmp_path):
    """A copy of the folder with one more file knows one more loss; nothing else is touched."""
    zoo = tmp_path / "zoo"
    shutil.copytree(Path(losses.__file__).parent, zoo, ignore=shutil.ignore_patterns("__pycache__"))
    source = (zoo / "ipo.py").read_text().replace("class IPO", "class Cubic").replace(") ** 2", ").abs() ** 3")
    (zoo / "cubic.py").write_text(source)
    script = "import zoo; print('cubic' in zoo.names(), zoo.build('cubic', beta=0.5).beta, zoo.describe('cubic').name)"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "0.5", "cubic"]


def test_three_ways_to_the_same_loss():
    built = losses.build("dpo", beta=0.3)
    for other in (losses.build({"name": "dpo", "beta": 0.3}), losses.build({"name": "dpo", "beta": 0.1}, beta=0.3)):
        assert (type(other), other.beta) == (type(built), 0.3)
    assert losses.build(built) is built


def test_nested_losses():
    loss = losses.build({"name": "group_robust", "base": {"name": "ipo", "beta": 0.3}, "step_size": 1})
    assert (type(loss.base).__name__, loss.base.beta, loss.step_size) == ("IPO", 0.3, 1)
    assert type(losses.build("group_robust", base="tdpo").base).__name__ == "TDPO"
    own = losses.build("ipo")
    assert losses.build("group_robust", base=own).base is own


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("dop", r"loss\.name: there is no loss 'dop'; did you mean dpo"),
        ("zzzzz", r"loss\.name: there is no loss 'zzzzz'; known are .*dpo.*tdpo"),
        ({"name": "dpo", "betta": 0.1}, r"loss\.betta: there is no option 'betta'; did you mean beta\?"),
        ({"name": "dpo", "beta": "0.1"}, r"loss\.beta: input should be a valid number, found '0\.1'"),
        ({"name": "dpo", "beta": True}, r"loss\.beta: input should be a valid number, found True"),
        ({"name": "dpo", "beta": None}, r"loss\.beta: input should be a valid number, found None"),
        ({"name": "dpo", "beta": -1}, r"loss\.beta must be a finite number > 0, found -1"),
        ({"name": "ipo", "normalise": "max"}, r"loss\.normalise: input should be 'mean' or 'sum', found 'max'"),
        ({"name": "tdpo", "variant": 3}, r"loss\.variant: input should be 1 or 2, found 3"),
        ({"name": "modpo", "weights": [0.5, "0.5"]}, r"loss\.weights: input should be a valid number"),
        ({"name": "group_robust", "base": {"name": "ipo", "beta": 0}}, r"loss\.base\.beta must be a finite number > 0"),
        ({"name": "group_robust", "base": {"name": "ipo", "bata": 0}}, r"loss\.base\.bata: there is no option"),
        ({"name": "group_robust", "base": "ipoo"}, r"loss\.base\.name: there is no loss 'ipoo'; did you mean ipo"),
        ({"name": "group_robust", "base": 3}, r"loss\.base: input should be an instance of Loss, found 3"),
        ({"beta": 0.1}, r"loss\.name: a loss needs a name, found None"),
        (3, r"loss: expected a name or a mapping with a name, found 3"),
        ("rdpo", r"loss\.name: 'rdpo' names no loss here: .*is 'robust_dpo'; R-DPO, .* is 'r_dpo'$"),
        ("rDPO", r"loss\.name: 'rDPO' names no loss here: .*'robust_dpo'"),
        ("Dr-DPO", r"loss\.name: 'Dr-DPO' names no loss here: .*'group_robust'"),
        ("mdpo", r"loss\.name: 'mdpo' names no loss here: .*'m_dpo'; .*'modpo'"),
        ("alpha_dpo", r"loss\.name: 'alpha_dpo' names no loss here: .*'alphapo'"),
        ("ln_dpo", r"loss\.name: 'ln_dpo' names no loss here: .*'sigmoid_norm'; 'ld_dpo'"),
        ("grpo", r"loss\.name: 'grpo' names no loss here: .*'group_robust'"),
    ],
    ids=str,
)
def test_mistakes_are_named(spec, message):
    with pytest.raises(ValueError, match=message):
        losses.build(spec)


def test_integers_pass_for_floats():
    assert losses.build("dpo", beta=1).beta == 1.0


def test_built_losses_take_no_options():
    with pytest.raises(ValueError, match=r"takes no options, found \['beta'\]"):
        losses.build(losses.build("dpo"), beta=0.2)


def test_aliases_say_what_they_stand_for():
    with pytest.warns(
        UserWarning, match=r"'robust_dpo' stands for \{name: dpo, smoothing: robust, label_smoothing: 0.1\}"
    ):
        loss = losses.build("robust_dpo", label_smoothing=0.2)
    assert (loss.smoothing, loss.label_smoothing) == ("robust", 0.2)


def test_every_alias_builds_and_hides_no_name():
    seen = set(losses.names())
    for name in losses.names():
        for alias in losses.describe(name).aliases:
            assert alias not in seen
            seen.add(alias)
            with pytest.warns(UserWarning, match="stands for"):
                losses.build(alias)


def test_class_of_a_users_file(mine):
    loss = losses.build(f"{mine}:MyLoss", margin=0.3)
    assert isinstance(loss, Loss)
    assert loss.margin == 0.3
    assert _contract.check(loss) == []
    nested = losses.build("group_robust", base={"name": f"{mine}:MyLoss", "margin": 1})
    assert nested.base.margin == 1.0


def test_function_of_a_users_file(mine):
    loss = losses.build({"name": f"{mine}:my_function", "scale": 2})
    batch = _examples.example_batch(loss.needs)
    expected = -2 * (batch.chosen.log_ratios - batch.rejected.log_ratios)
    torch.testing.assert_close(loss(batch).loss, expected)


@pytest.mark.parametrize(
    ("attribute", "options", "message"),
    [
        ("MyLos", {}, r"there is no name in .*mine\.py 'MyLos'; did you mean MyLoss"),
        ("MyLoss", {"margn": 0.1}, r"loss\.margn: there is no option 'margn'; did you mean margin"),
        ("MyLoss", {"margin": "0.1"}, r"loss\.margin: input should be a valid number"),
        ("MyLoss", {"margin": -1.0}, r"loss\.margin must be >= 0, found -1\.0"),
        ("my_function", {"scale": "x"}, r"loss\.scale: input should be a valid number"),
        ("Unrelated", {}, "no subclass of alignlab.losses.Loss"),
        ("value", {}, "neither a class nor a function"),
    ],
)
def test_mistakes_in_a_users_file(mine, attribute, options, message):
    with pytest.raises(ValueError, match=message):
        losses.build(f"{mine}:{attribute}", **options)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*nothing\.py"):
        losses.build(f"{tmp_path}/nothing.py:MyLoss")
    with pytest.raises(ValueError, match=r"path/to/file\.py:Name, found 'mine\.py'"):
        losses.build("mine.py")
    (tmp_path / "broken.py").write_text("import nowhere_to_be_found\n")
    with pytest.raises(ValueError, match=r"broken\.py cannot be imported: ModuleNotFoundError"):
        losses.build(f"{tmp_path}/broken.py:MyLoss")


def test_from_function():
    """A function of the batch gives rows or a whole output; its keyword parameters are its options."""

    def rows(batch, weight: float):
        return weight * batch.chosen.sum_logps

    loss = losses.from_function(rows, weight=2)
    batch = _examples.example_batch(loss.needs)
    assert loss.needs == Needs()
    torch.testing.assert_close(loss(batch).loss, 2 * batch.chosen.sum_logps)
    with pytest.raises(ValueError, match=r"loss\.weight: this option has no default"):
        losses.from_function(rows)
    whole = losses.from_function(lambda batch: LossOutput(batch.chosen.sum_logps, metrics={}), needs=Needs(gold=True))
    assert whole.needs.gold
    torch.testing.assert_close(whole(batch).loss, batch.chosen.sum_logps)


def test_needs_that_are_none_are_refused_by_name(tmp_path):
    """A text in the place of ``Needs(...)`` was an AttributeError within the checks."""
    path = tmp_path / "mine.py"
    path.write_text("def f(batch):\n    return batch\nf.needs = 'ref_logps'\n")
    with pytest.raises(
        ValueError, match=r"^loss.name: needs of .*mine.py:f must be a Needs\(...\), found 'ref_logps'$"
    ):
        losses.build({"name": f"{path}:f"})


def test_a_loss_that_ends_the_process_is_a_finding(tmp_path):
    """sys.exit in the body of a loss ended the run with its status, and without a word."""
    path = tmp_path / "mine.py"
    path.write_text("import sys\ndef f(batch):\n    sys.exit(3)\n")
    findings = losses.check(losses.build({"name": f"{path}:f"}))
    assert findings[0].fatal
    assert findings[0].message == f"raised SystemExit: 3 ({path}:3)"
