"""The reproductions in small: each program runs, its closed forms are exact, and a quick run repeats to the digit."""

from __future__ import annotations

import copy
import csv
import doctest
import importlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).resolve().parent.parent / "benchmarks" / "repro"


@pytest.fixture(scope="module", autouse=True)
def programs_import_each_other() -> Iterator[None]:
    """The programs are run as scripts, so their folder is where they look for what they share."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(FOLDER)):
            del sys.modules[name]


def program(name: str) -> Any:
    return importlib.import_module(name)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# ---- what they share ---------------------------------------------------------------------------------------------


def test_interval_by_hand() -> None:
    """1, 2, 3, 4, 5: standard deviation sqrt(2.5), standard error 0.7071, t = 2.776: 3 +- 1.963."""
    mean, low, high = program("results").interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, low, high) == pytest.approx((3.0, 3 - 1.96293, 3 + 1.96293), abs=1e-4)


def test_rows_that_stand_already_are_not_made_again(tmp_path: Path) -> None:
    results = program("results")
    made: list[int] = []

    def make(seed: int) -> dict[str, float]:
        made.append(seed)
        return {"reward": seed + 0.125}

    for seeds in (2, 3):
        runs = results.Runs(tmp_path / "runs.csv", ("seed",))
        for seed in range(seeds):
            runs.run(lambda seed=seed: make(seed), seed=seed)
    assert made == [0, 1, 2]
    assert [row["reward"] for row in results.Runs(tmp_path / "runs.csv", ("seed",)).rows] == [0.125, 1.125, 2.125]


def test_columns_keep_their_order_whatever_that_of_the_rows_is(tmp_path: Path) -> None:
    results = program("results")
    runs = results.Runs(tmp_path / "runs.csv", ("seed",))
    runs.run(lambda: {"step": 1, "pairs": 20}, seed=0)
    runs.run(lambda: {"pairs": 40, "step": 3}, seed=1)
    rows = results.Runs(tmp_path / "runs.csv", ("seed",)).rows
    assert [(row["step"], row["pairs"]) for row in rows] == [(1, 20), (3, 40)]


# ---- the bandit --------------------------------------------------------------------------------------------------

UNEVEN = "uneven groups, balanced responses"


def test_bandit_rewards_by_hand() -> None:
    """x = (0, 1/2): cos (1, 0), sin (0, 1); action 4 scales by 1.5 and 1 / 1.5; both groups get the same reward."""
    bandit = program("bandit")
    x = torch.tensor([[0.0, 0.5]] * 2, dtype=torch.float64)
    group = torch.tensor([0, 1])
    phi = bandit.features(x, group)[:, 4]
    expected = torch.tensor([[1.5, 0, 0, 1 / 1.5], [0, 1.5, 1 / 1.5, 0]], dtype=torch.float64)
    torch.testing.assert_close(phi, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        bandit.true_rewards(x, group)[:, 4], torch.full((2,), 1.5 + 3 / 1.5, dtype=torch.float64)
    )


def test_bandit_gradient_is_the_papers() -> None:
    """DPO with beta 1: the gradient is -mean((1 - sigmoid(d theta)) d), d the difference of the features."""
    bandit = program("bandit")
    data = bandit.draw(40, UNEVEN, 3, training=True)
    theta = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    phi = bandit.features(data.x, data.group)
    bandit.base_loss("DPO")(bandit.batch(theta, phi, data)).loss.mean().backward()
    difference = differences(phi, data)
    expected = -((1 - torch.sigmoid(difference @ theta.detach()))[:, None] * difference).mean(0)
    torch.testing.assert_close(theta.grad, expected, atol=1e-12, rtol=0)


def differences(phi: torch.Tensor, data: Any) -> torch.Tensor:
    rows = torch.arange(len(data.group))
    return phi[rows, data.chosen] - phi[rows, data.rejected]


@pytest.mark.parametrize(("method", "weight"), [("IPO", None), ("IS-IPO", (0.5, 0.5)), ("IS2-IPO", (0.8, 0.2))])
def test_bandit_ipo_ends_where_least_squares_does(method: str, weight: tuple[float, float] | None) -> None:
    """sum_i c_i (d_i theta - 1/2)^2 has its minimum at (D' C D)^-1 D' C 1/2; c_i = alpha_g N / N_g, or 1."""
    bandit = program("bandit")
    data = bandit.draw(100, UNEVEN, 0, training=True)
    *_, (_, theta, _) = bandit.train(method, data, steps=1500, points=1)
    d = differences(bandit.features(data.x, data.group), data)
    alpha = torch.tensor(weight or (0.2, 0.8), dtype=torch.float64)
    c = (alpha / torch.tensor([0.2, 0.8], dtype=torch.float64))[data.group]
    exact = torch.linalg.solve(d.T @ (c[:, None] * d), d.T @ c / 2)
    torch.testing.assert_close(theta, exact, atol=1e-6, rtol=0)


def test_bandit_program_repeats_itself(tmp_path: Path) -> None:
    """3 settings, 8 methods, 1 seed, 3 points of 30 steps; the first run made again gives the same numbers."""
    bandit = program("bandit")
    bandit.main(["--quick", "--seeds", "1", "--output", str(tmp_path)])
    rows = read(tmp_path / "repro_bandit.csv")
    assert len(rows) == 3 * 8 * 3
    again = bandit.measure("GR-IPO", UNEVEN, 0, pairs=300, steps=30)
    first = [row for row in rows if row["method"] == "GR-IPO" and row["setting"] == UNEVEN]
    for row, repeated in zip(first, again, strict=True):
        assert {name: f"{value:.6g}" for name, value in repeated.items()} == {name: row[name] for name in repeated}
    assert len(read(tmp_path / "repro_bandit_claims.csv")) == 3 * 2 * 2 * 3
    assert (tmp_path / "repro_bandit_300.png").stat().st_size > 10_000


# ---- the made-up language ----------------------------------------------------------------------------------------


def test_best_trade_off_is_that_of_all_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of two words, all 576 of them: p(y) exp(0.7 r(y)) / Z is the best trade-off at strength 0.7."""
    world = program("world")
    monkeypatch.setattr(world, "LENGTH", 2)
    made = world.World(1)
    rewards, kl, entropy = made.best(0.7, (1.0,), ["north w0 w0 w5"])
    reward = made.worth[0][:, None] + made.worth[0][None, :]
    chain = made.transitions[5][:, None] * made.transitions
    best = chain * torch.exp(0.7 * reward)
    best = best / best.sum()
    assert rewards[0] == pytest.approx(float((best * reward).sum()), abs=1e-12)
    assert kl == pytest.approx(float((best * (best / chain).log()).sum()), abs=1e-12)
    assert entropy == pytest.approx(-float((best * best.log()).sum()), abs=1e-12)
    assert made.best_reward(kl, ["north w0 w0 w5"]) == pytest.approx(rewards[0], abs=1e-6)


def test_objectives_label_the_same_answers() -> None:
    world = program("world")
    made = world.World(0)
    plain, flipped = made.pairs(50, rewards=(1,)), made.pairs(50, rewards=(1,), flipped=1.0)
    assert [(a["chosen"], a["rejected"]) for a in plain] == [(b["rejected"], b["chosen"]) for b in flipped]
    other = made.pairs(50, objectives=(1, 1, 1))
    same = [a["chosen"] == b["chosen"] for a, b in zip(plain, other, strict=True)]
    assert all(
        {a["chosen"][0]["content"], a["rejected"][0]["content"]}
        == {b["chosen"][0]["content"], b["rejected"][0]["content"]}
        for a, b in zip(plain, other, strict=True)
    )
    assert 0 < sum(same) < 50
    answer = plain[0]["chosen"][0]["content"]
    worth = [float(made.worth[1][int(word[1:])]) for word in answer.split()]
    assert plain[0]["rewards_chosen"] == [sum(worth)]
    assert made.rewards(f"{answer} w1 w2 w3")[1] == sum(worth)  # nothing is gained by a longer answer


def test_unpaired_rows_are_one_a_pair() -> None:
    noise = program("noise")
    pairs = program("world").World(0).pairs(40)
    rows = noise.unpaired(pairs, 0.3, seed=0)
    assert sum(row["label"] for row in rows) == 12
    for row, pair in zip(rows, pairs, strict=True):
        assert row["completion"] == pair["chosen" if row["label"] else "rejected"]
    loss = noise.kto(0.3, True)  # 12 desirable and 28 undesirable rows weigh 12 * 1 and 28 * 3 / 7
    assert loss["desirable_weight"] == 1.0
    assert loss["undesirable_weight"] * 28 == pytest.approx(12)


def test_lists_are_ranked_as_bradley_and_terry_have_it() -> None:
    """Of 2,000 lists of two, the share that the first wins is the mean of sigmoid(gap), within two standard errors."""
    made = program("world").World(0)
    rows = made.lists(2000, 2)
    gaps = torch.tensor([[made.rewards(one[0]["content"])[0] for one in row["completions"]] for row in rows])
    likely = torch.sigmoid(gaps[:, 0] - gaps[:, 1])
    won = torch.tensor([row["scores"][0] > row["scores"][1] for row in rows]).float()
    assert abs(float((won - likely).mean())) < 2 * float((likely * (1 - likely)).mean() / 2000) ** 0.5
    assert float(((likely - 0.5) * (won - 0.5)).mean()) > 0.05  # the better answer wins more often


def test_rankings_read_whole_answers() -> None:
    """Tokens of a list are its prompt and answer, the end of the turn included; scores stay beside their answers."""
    rankings, world, tiny = program("rankings"), program("world"), program("tiny")
    tokens, scores, start = rankings.ranked(0, 3, 4)
    assert tokens.shape == (3, 4, 15)
    for row, ids, values in zip(world.World(0).lists(3, 4), tokens, scores, strict=True):
        answers = [tiny.tokenizer().decode(one[start:]) for one in ids]
        assert answers == [f"{one[0]['content']} <|end|>" for one in row["completions"]]
        assert values.tolist() == pytest.approx(row["scores"])


@pytest.mark.parametrize("name", ["results", "frontier", "pareto", "rankings", "overoptimised"])
def test_examples_in_docstrings(name: str) -> None:
    outcome = doctest.testmod(program(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0


# ---- the programs on the tiny model ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all programs, so that they share the supervised start."""
    return tmp_path_factory.mktemp("repro")


def quick(name: str, output: Path) -> list[dict[str, Any]]:
    """Runs a program quickly with one seed; returns the rows of its CSV as it reads them."""
    rows: list[dict[str, Any]] = program(name).main(["--quick", "--seeds", "1", "--output", str(output)]).rows
    assert (output / f"repro_{name}_claims.csv").is_file()
    return rows


def test_frontier_program(output: Path) -> None:
    """The start and seven losses; a run made again gives the same numbers."""
    frontier = program("frontier")
    rows = quick("frontier", output)
    assert [row["method"] for row in rows] == ["start", *frontier.METHODS]
    assert rows[0]["kl"] == 0.0
    assert all(row["kl"] > 0 for row in rows[1:])
    again = frontier.train("TDPO2", 0.1, 0, output / "work", True)
    for row, repeated in zip([row for row in rows if row["method"] == "TDPO2"], again, strict=True):
        assert {name: row[name] for name in repeated} == pytest.approx(repeated, rel=1e-9)
    assert (output / "repro_frontier.png").stat().st_size > 10_000


def test_rankings_program(output: Path) -> None:
    """The start and seven ways to read a ranking; a run made again gives the same numbers."""
    rankings = program("rankings")
    rows = quick("rankings", output)
    assert [row["method"] for row in rows] == ["start", *rankings.METHODS]
    assert all(row["kl"] > 0 for row in rows[1:])
    [again] = rankings.train("LiPO", 0.1, 0, output / "work", True)
    [row] = [row for row in rows if row["method"] == "LiPO"]
    assert {name: row[name] for name in again} == pytest.approx(again, rel=1e-5)
    assert (output / "repro_rankings.png").stat().st_size > 10_000


def test_pareto_program(output: Path) -> None:
    """With all weight on the first objective, MODPO is DPO on it; so is the soup."""
    pareto = program("pareto")
    rows = quick("pareto", output)
    assert [row["method"] for row in rows] == ["single", "single", *pareto.METHODS]
    work = output / "work"
    alone = pareto.single(0, 0, work, True).state_dict()
    for model in (pareto.modpo(1.0, 0, work, True, true_margin=True), pareto.soup(1.0, 0, work, True)):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, alone[name], atol=1e-6, rtol=0)


def test_same_program(output: Path) -> None:
    """After two steps no way to score the reference or to lay rows out has moved the margin by 1e-5."""
    rows = quick("same", output)
    assert len(rows) == 9
    for base in ("full", "4-bit"):
        margins = [row["eval_margin"] for row in rows if row["base"] == base]
        assert len(margins) == 4
        assert max(margins) - min(margins) < 1e-5
        assert max(margins) != 0.0
    plain = [row for row in rows if (row["reference"], row["layout"]) == ("cached", "padded")]
    assert [(row["quantisation_kl"] > 1e-3, row["base"]) for row in plain] == [
        (False, "full"),
        (True, "4-bit"),
        (False, "adapter"),
    ]


def test_noise_and_groups_programs(output: Path) -> None:
    noise, groups = quick("noise", output), quick("groups", output)
    assert len(noise) == 2 + 2 + 4
    assert len(groups) == 6
    for row in groups:
        assert row["worst_loss"] == max(row[f"loss_{group}"] for group in range(3))
        weights = [row[f"weight_{group}"] for group in range(3)]
        if row["method"].startswith("IS"):
            assert weights == pytest.approx([1 / 3] * 3, abs=1e-5)
        elif row["method"].startswith("GR"):
            assert sum(weights) == pytest.approx(1, abs=1e-5)
            assert weights != pytest.approx([1 / 3] * 3, abs=1e-5)


# ---- reward models and HyPO ----------------------------------------------------------------------------------------


def test_the_logistic_fit_finds_the_worths() -> None:
    """On 3,000 pairs its accuracy is within 0.01 of the true reward's, and above that of 30 pairs."""
    reward, world = program("reward"), program("world").World(0)
    tests = world.pairs(1000, "test")
    truth, fit, few = (
        reward.oracle(world, tests),
        reward.logistic(world.pairs(3000), tests),
        reward.logistic(world.pairs(30), tests),
    )
    assert fit["accuracy"] == pytest.approx(truth["accuracy"], abs=0.01)
    assert few["accuracy"] < fit["accuracy"] - 0.05
    assert few["brier"] > fit["brier"]


def test_covered_pairs_hold_half_of_the_words() -> None:
    hybrid, module = program("hybrid"), program("world")
    rows = hybrid.covered(module.World(1), 200)
    words = {word for row in rows for name in ("chosen", "rejected") for word in row[name][0]["content"].split()}
    assert len(words) == hybrid.COVERED
    world = module.World(1)
    gaps = [
        world.rewards(row["chosen"][0]["content"])[0] - world.rewards(row["rejected"][0]["content"])[0] for row in rows
    ]
    assert sum(gap > 0 for gap in gaps) > 2 * sum(gap < 0 for gap in gaps), "the better answer is mostly the chosen one"
    assert sum(gap < 0 for gap in gaps) > 0, "and not always"


@pytest.mark.slow
def test_reward_and_hybrid_programs(output: Path) -> None:
    """Quick runs of both, and their claims."""
    reward, hybrid = quick("reward", output), quick("hybrid", output)
    assert [row["method"] for row in reward] == ["true reward", "logistic fit", "reward model"]
    assert [row["weight"] for row in hybrid] == [0.0, 0.01]
    assert len(read(output / "repro_reward_claims.csv")) == 4
    assert len(read(output / "repro_hybrid_claims.csv")) == 5


# ---- a reward model that cannot see repeats ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["next", "anywhere"])
def test_figures_of_a_policy_are_those_of_all_its_answers(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of three words, all 13,824 of them: p(y) exp(0.7 score(y)) / Z is the policy of strength 0.7."""
    module, overoptimised = program("world"), program("overoptimised")
    monkeypatch.setattr(module, "LENGTH", 3)
    made = module.World(1)
    learned, worth, state = made.worth[1], made.worth[0], made.before(["north w0 w0 w5"])
    found = overoptimised.figures(made, made.tilted(0.7, learned), learned, state, kind)
    a, b, c = torch.cartesian_prod(*[torch.arange(24)] * 3).T
    chain = made.transitions[5, a] * made.transitions[a, b] * made.transitions[b, c]
    score = learned[a] + learned[b] + learned[c]
    policy = chain * torch.exp(0.7 * score)
    policy = policy / policy.sum()
    again = (a == b).double() + (b == c).double()
    if kind == "anywhere":
        again = (a == b).double() + ((c == a) | (c == b)).double()
    expected = {"kl": (policy / chain).log(), "score": score, "repeats": again}
    expected["gold"] = worth[a] + worth[b] + worth[c] - 2 * again
    assert found == pytest.approx({name: float(policy @ values) for name, values in expected.items()}, abs=1e-12)


def test_pairs_of_the_gold_reward_are_labelled_by_it() -> None:
    """Of 1,000 pairs the share whose chosen answer is better is the mean of sigmoid(|gap|), within two errors."""
    overoptimised, made = program("overoptimised"), program("world").World(0)
    texts = [
        [row[name][0]["content"] for name in ("chosen", "rejected")]
        for row in overoptimised.labelled(made, 1000, "next")
    ]
    gold = torch.tensor(
        [[made.rewards(text)[0] - 2 * overoptimised.repeats(text, "next") for text in both] for both in texts]
    )
    gaps = gold[:, 0] - gold[:, 1]
    likely = torch.sigmoid(gaps[gaps != 0].abs())
    error = float((likely * (1 - likely)).mean() / len(likely)) ** 0.5
    assert abs(float((gaps[gaps != 0] > 0).float().mean() - likely.mean())) < 2 * error


def test_overoptimised_program(output: Path) -> None:
    """Two kinds of repeats, three sizes, five strengths each; both figures and claims are written."""
    rows = quick("overoptimised", output)
    assert len(rows) == 2 * 3 * 5
    for row in rows[4::5]:
        assert row["gold"] < max(one["gold"] for one in rows if one["kind"] == row["kind"])
    assert len(read(output / "repro_overoptimised_claims.csv")) == 2 * (3 * 7 + 2)
    assert (output / "repro_overoptimised.png").stat().st_size > 10_000


# ---- loops ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nats", [0.0, 0.5])
def test_kl_of_the_data_to_the_chain_itself_is_nought(nats: float) -> None:
    """A model that is the chain is 0 nats away; one that ends answers with probability exp(-0.5) only, 0.5."""
    spin, made, tiny = program("spin"), program("world").World(0), program("tiny")
    words = tiny.tokenizer()
    first, end = words.convert_tokens_to_ids("w0"), words.eos_token_id

    def chain(tokens: torch.Tensor, **others: Any) -> Any:
        """The word before the first of an answer stands one place farther back, before the turn's own token."""
        before = torch.where(tokens < first, tokens.roll(1, -1), tokens).clamp(min=first) - first
        logits = torch.full((*tokens.shape, len(words)), -torch.inf, dtype=torch.float64)
        logits[..., first : first + 24] = made.transitions[before].log()
        logits[:, -1] = -torch.inf
        logits[:, -1, end] = -nats
        logits[:, -1, first] = math.log(-math.expm1(-nats)) if nats else -torch.inf
        return SimpleNamespace(logits=logits)

    assert spin.data_kl(chain, made, made.demonstrations(20, "test data")) == pytest.approx(nats, abs=1e-12)


def test_pairs_against_itself_hold_whole_answers_that_differ(output: Path) -> None:
    """The demonstration is chosen; the rejected one is the model's own, ended by itself, and another one."""
    spin, made, tiny = program("spin"), program("world").World(0), program("tiny")
    rows, model = made.demonstrations(24), tiny.start(0, output / "work", quick=True)
    pairs = spin.against_itself(model, rows, 3)
    chosen = {str(row["prompt"]) + str(row["completion"]) for row in rows}
    assert 0 < len(pairs) <= 24
    assert all(str(row["prompt"]) + str(row["chosen"]) in chosen for row in pairs)
    assert all(row["chosen"] != row["rejected"] for row in pairs)
    assert spin.against_itself(model, rows, 3) == pairs


@pytest.mark.slow
def test_spin_program(output: Path) -> None:
    """The start and two rounds of each method; all of them begin at the same KL."""
    spin = program("spin")
    rows = quick("spin", output)
    assert [(row["method"], row["round"]) for row in rows] == [
        (name, step) for name in spin.METHODS for step in range(3)
    ]
    assert len({row["data_kl"] for row in rows[::3]}) == 1
    assert len({row["data_kl"] for row in rows[1::3]}) == 3


def test_pairs_of_the_models_own_answers_are_labelled_by_the_true_reward(output: Path) -> None:
    """The chosen answer is better in as many pairs as the mean of sigmoid(|gap|) says, within three errors."""
    iterated, made, tiny = program("iterated"), program("world").World(0), program("tiny")
    model = tiny.start(0, output / "work", quick=True)
    rows = iterated.own_pairs(model, made, 200, "start")
    assert 150 < len(rows) <= 200
    assert rows == iterated.own_pairs(model, made, 200, "start")
    assert all(row["chosen"] != row["rejected"] for row in rows)
    rewards = [[made.rewards(row[name][0]["content"])[0] for name in ("chosen", "rejected")] for row in rows]
    gaps = torch.tensor([good - bad for good, bad in rewards])
    gaps = gaps[gaps != 0]
    likely = torch.sigmoid(gaps.abs())
    error = float((likely * (1 - likely)).mean() / len(likely)) ** 0.5
    assert abs(float((gaps > 0).float().mean() - likely.mean())) < 3 * error
    assert 0.6 < float((gaps > 0).float().mean()) < 0.95


@pytest.mark.slow
def test_iterated_program(output: Path) -> None:
    """The start, and four methods after every second of eight steps; offline pairs in parts are those of on-policy."""
    iterated = program("iterated")
    rows = quick("iterated", output)
    assert [(row["method"], row["step"]) for row in rows] == [("start", 0)] + [
        (method, step) for method in iterated.METHODS for step in (2, 4, 6, 8)
    ]
    found = {method: [row["pairs"] for row in rows if row["method"] == method] for method in iterated.METHODS}
    assert sum(found["on-policy in parts"]) == found["on-policy"][0] > 48
    assert found["off-policy"] == [64] * 4
    assert all(8 < pairs <= 16 for pairs in found["rounds"])
    assert all(row["kl"] > 0 for row in rows[1:])
    assert len({row["kl"] for row in rows[1:]}) == 16


def test_the_reference_is_the_model_as_it_was_or_the_start(output: Path) -> None:
    """The loss of the first step, before any update: ln 2 if the policy is its reference; else the mean of the losses
    -log sigmoid(beta gap) by the log-probabilities of both models."""
    tiny, made, work = program("tiny"), program("world").World(0), output / "work"
    base, rows, dpo = tiny.start(0, work, quick=True), made.pairs(16), {"name": "dpo", "beta": 0.1}
    moved = tiny.tuned(base, made.pairs(64), dpo, 0, work, 4)
    path = {"ref_model_name_or_path": str(work / "start_0")}

    def first_loss(**own: Any) -> float:
        return float(tiny.fit(copy.deepcopy(moved), rows, dpo, 0, work, 1, **own).state.log_history[-1]["train_loss"])

    def logps(model: Any, name: str) -> torch.Tensor:
        turns = [tiny.tokenizer().apply_chat_template(row["prompt"] + row[name], tokenize=False) for row in rows]
        tokens = torch.tensor([tiny.tokenizer()(text, add_special_tokens=False).input_ids for text in turns])
        with torch.no_grad():
            found: torch.Tensor = model.eval()(tokens).logits[:, 5:-1].log_softmax(-1)
        return found.gather(-1, tokens[:, 6:, None])[..., 0].sum(-1)  # a prompt has six tokens

    gaps = [logps(model, "chosen") - logps(model, "rejected") for model in (moved, base)]
    expected = -torch.nn.functional.logsigmoid(0.1 * (gaps[0] - gaps[1])).mean()
    assert first_loss() == pytest.approx(math.log(2), abs=1e-6)
    assert first_loss(**path) == pytest.approx(float(expected), abs=1e-5)
    assert abs(float(expected) - math.log(2)) > 1e-3
