"""A made-up preference task whose true reward is known: polite, relevant answers to questions about things."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Split = Literal["train", "heldout"]
Row = dict[str, Any]
Words = dict[str, str]

COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "pink")
SIZES = ("big", "small", "tiny", "huge", "long", "wide")
ASKED = ("colour", "size")

REQUESTS = (  # each names both properties of a thing and asks for one of them
    "In the {topic}, what {asked} is the {size} {colour} {thing}?",
    "In the {topic} is a {colour} {thing}, a {size} one. Which {asked} does it have?",
    "Look at the {size} {colour} {thing} in the {topic}. What is its {asked}?",
)

ANSWER = "{opening} The {thing} is {answer}. It looks {looks}. {closing}"

OPENINGS = {
    "polite": ("With pleasure, my friend.", "Of course, dear reader.", "Certainly, my dear.", "Happily, good friend."),
    "rude": ("Stop bothering, you fool.", "Go away, lazy reader.", "Whatever, my fool.", "Wrong, boring reader."),
}
LOOKS = {
    "varied": ("fresh, bright and clean", "old, heavy and strong", "plain, simple and useful"),
    "repeated": ("nice, nice and nice", "good, good and good", "great, great and great"),
}
CLOSINGS = {
    "tip": ("Keep it in a dry place.", "Wash it with some warm water."),
    "fact": ("It was made in our town.", "It came here a year ago."),
    "question": ("Do you want to hear more?", "Shall I tell you even more?"),
}


@dataclass(frozen=True)
class Topic:
    """One group of rows: its things, its share of the rows, and the closing that its readers like and dislike."""

    things: tuple[str, ...]
    share: float
    likes: str
    dislikes: str


TOPICS = {
    "kitchen": Topic(("apple", "cake", "cup", "jar", "lemon", "plate", "pot", "spoon"), 0.5, "tip", "question"),
    "garden": Topic(("bench", "fence", "gate", "ladder", "rake", "rose", "shed", "tulip"), 0.3, "fact", "tip"),
    "harbour": Topic(("anchor", "barrel", "boat", "flag", "lamp", "net", "rope", "sail"), 0.2, "question", "fact"),
}


@dataclass(frozen=True)
class Habits:
    """How likely a writer of answers is to be polite, to answer what was asked, and to vary the words.

    ``closing`` holds the shares of the closing that readers of the topic like, of the neutral and the disliked one.
    """

    polite: float
    relevant: float
    varied: float
    closing: tuple[float, float, float]


CARELESS = Habits(polite=0.25, relevant=0.7, varied=0.25, closing=(0.5, 0.3, 0.2))
"""Who wrote the demonstrations: knows the answer as a rule, has no manners, and repeats himself."""

EVEN = Habits(polite=0.5, relevant=0.5, varied=0.5, closing=(1 / 3, 1 / 3, 1 / 3))
"""Who wrote the pairs. A model of the demonstrations finds the better answer of such a pair likelier half the time."""


# ---- the true reward ---------------------------------------------------------------------------------------------


def rewards(prompt: str, completion: str) -> dict[str, float]:
    """Returns the two objectives of any text as an answer to ``prompt``.

    helpful = 1/2 for naming the thing + 1/2 for the property asked for - 1 for the property that was not asked for
              + 1/2 for the closing that the topic's readers like - 1/2 for the one they dislike
              - 1/2 for each repeated word in how it looks (at most 1) - 2 if the text is not of the form ``ANSWER``;
    courteous = 1/2 for a polite opening, -1/2 for a rude one (or for both), 0 for none.

    Raises:
        ValueError: the prompt is not one of this task's.
    """
    request = _read_prompt(prompt)
    topic = TOPICS[request["topic"]]
    words = re.findall(r"\w+", completion.lower())
    relevance = 0.5 * (request["thing"] in words) + 0.5 * (request["answer"] in words) - (request["other"] in words)
    closings = _kinds(CLOSINGS, completion)
    closing = 0.5 * (topic.likes in closings) - 0.5 * (topic.dislikes in closings)
    looks = re.findall(r"\w+", " ".join(re.findall(r"looks ([^.]*)", completion.lower())))
    repetition = min(1.0, 0.5 * (len(looks) - len(set(looks))))
    malformed = 0.0 if _ANSWER_PATTERN.fullmatch(completion.strip()) else 2.0
    tones = _kinds(OPENINGS, completion)
    courtesy = -0.5 if "rude" in tones else 0.5 * ("polite" in tones)
    return {"helpful": relevance + closing - repetition - malformed, "courteous": courtesy}


def reward(prompt: str, completion: str) -> float:
    """Returns the true reward, the sum of both objectives: 2 for the best answers, -2.5 for the worst well-formed ones.

    >>> prompt = "Look at the big red boat in the harbour. What is its size?"
    >>> reward(prompt, "Certainly, my dear. The boat is big. It looks old, heavy and strong. Do you want to hear more?")
    2.0
    >>> reward(prompt, "Whatever, my fool. The boat is red. It looks nice, nice and nice. It came here a year ago.")
    -2.5
    >>> reward(prompt, "The the boat")
    -1.5
    """
    return sum(rewards(prompt, completion).values())


def _pattern(template: str, **words: str) -> re.Pattern[str]:
    """Returns the pattern of a template; a ``{name}`` that is not given matches any word, as the group of that name."""
    parts = re.split(r"\{(\w+)\}", template)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = [words.get(name, rf"(?P<{name}>\w+)") for name in parts[1::2]]
    return re.compile("".join(parts))


def _one_of(texts: Mapping[str, tuple[str, ...]]) -> str:
    return f"(?:{'|'.join(re.escape(text) for several in texts.values() for text in several)})"


_REQUEST_PATTERNS = tuple(_pattern(request) for request in REQUESTS)
_ANSWER_PATTERN = _pattern(ANSWER, opening=_one_of(OPENINGS), looks=r"\w+, \w+ and \w+", closing=_one_of(CLOSINGS))


def _kinds(texts: Mapping[str, tuple[str, ...]], completion: str) -> set[str]:
    """Returns of which kinds (``polite``, ``tip``, ...) the completion contains a text."""
    return {kind for kind, several in texts.items() if any(text in completion for text in several)}


def _read_prompt(prompt: str) -> Words:
    """Returns topic, thing, the property asked for (``answer``) and the one that was not (``other``)."""
    for pattern in _REQUEST_PATTERNS:
        match = pattern.fullmatch(prompt.strip())
        if match and match["topic"] in TOPICS and match["asked"] in ASKED:
            [unasked] = set(ASKED) - {match["asked"]}
            words = {"answer": match[match["asked"]], "other": match[unasked]}
            return {"topic": match["topic"], "thing": match["thing"], **words}
    raise ValueError(f"not a prompt of this task: {prompt!r}; one is {next(_requests(random.Random(0), 'train'))!r}")


# ---- rows --------------------------------------------------------------------------------------------------------


def pairs(count: int, seed: int = 0, split: Split = "train") -> list[Row]:
    """Returns ``count`` preference pairs labelled by the true reward, with every column that a loss may ask for.

    Conversational rows of prompt, chosen, rejected; group (the topic); score_chosen, score_rejected and margin (true
    rewards and their difference); rewards_chosen and rewards_rejected (both objectives). The same rows everywhere.
    """
    rng = random.Random(f"pairs {split} {seed}")
    return [_pair(rng, prompt) for prompt in _take(count, _requests(rng, split))]


def lists(count: int, seed: int = 0, split: Split = "train", completions: int = 4) -> list[Row]:
    """Returns ``count`` lists of different answers, rated by the true reward, of which not all are equally good.

    Conversational rows of prompt and completions, with scores (true rewards), rewards (both objectives of each) and
    group (the topic). The same rows everywhere.
    """
    rng = random.Random(f"lists {split} {seed} {completions}")
    return [_list(rng, prompt, completions) for prompt in _take(count, _requests(rng, split))]


def demonstrations(count: int, seed: int = 0) -> list[Row]:
    """Returns ``count`` rows for a supervised start, by a careless writer: prompt, completion and label (True)."""
    rng = random.Random(f"demonstrations {seed}")
    return [
        {"prompt": user(prompt), "completion": assistant(_answer(rng, prompt, CARELESS)), "label": True}
        for prompt in _take(count, _requests(rng, "train"))
    ]


def prompts(count: int, seed: int = 0, split: Split = "heldout") -> list[str]:
    """Returns ``count`` different prompts."""
    found: dict[str, None] = {}
    for prompt in _requests(random.Random(f"prompts {split} {seed}"), split):
        if len(found) == count:
            break
        found[prompt] = None
    return list(found)


def user(text: str) -> list[Words]:
    """Returns ``text`` as a conversation of one turn, the user's."""
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[Words]:
    """Returns ``text`` as one turn of the assistant."""
    return [{"role": "assistant", "content": text}]


def _take(count: int, prompts: Iterator[str]) -> list[str]:
    return [next(prompts) for _ in range(count)]


def _requests(rng: random.Random, split: Split) -> Iterator[str]:
    """Yields prompts for ever; every thing occurs in every colour, but in a quarter of the colours only held out."""
    shares = [topic.share for topic in TOPICS.values()]
    while True:
        [name] = rng.choices(list(TOPICS), shares)
        things = TOPICS[name].things
        colours = range(len(COLOURS))
        seen = [(i, j) for i in colours for j in range(len(things)) if ((i + j) % 4 == 0) == (split == "heldout")]
        colour, thing = rng.choice(seen)
        yield rng.choice(REQUESTS).format(
            topic=name, asked=rng.choice(ASKED), size=rng.choice(SIZES), colour=COLOURS[colour], thing=things[thing]
        )


def _answer(rng: random.Random, prompt: str, habits: Habits) -> str:
    """Returns a random answer of a writer with these habits."""
    request = _read_prompt(prompt)
    topic = TOPICS[request["topic"]]
    [neutral] = set(CLOSINGS) - {topic.likes, topic.dislikes}
    [closing] = rng.choices((topic.likes, neutral, topic.dislikes), habits.closing)
    return ANSWER.format(
        opening=rng.choice(OPENINGS["polite" if rng.random() < habits.polite else "rude"]),
        thing=request["thing"],
        answer=request["answer" if rng.random() < habits.relevant else "other"],
        looks=rng.choice(LOOKS["varied" if rng.random() < habits.varied else "repeated"]),
        closing=rng.choice(CLOSINGS[closing]),
    )


def _list(rng: random.Random, prompt: str, completions: int) -> Row:
    """Returns different answers, not all of the same reward."""
    answers: dict[str, float] = {}
    while len(answers) < completions or len(set(answers.values())) < 2:
        if len(answers) == completions:
            answers.clear()
        answer = _answer(rng, prompt, EVEN)
        answers[answer] = reward(prompt, answer)
    return {
        "prompt": user(prompt),
        "completions": [assistant(answer) for answer in answers],
        "scores": list(answers.values()),
        "rewards": [rewards(prompt, answer) for answer in answers],
        "group": _read_prompt(prompt)["topic"],
    }


def _pair(rng: random.Random, prompt: str) -> Row:
    """Returns two answers of different reward, the better one as chosen."""
    while True:
        one, other = _answer(rng, prompt, EVEN), _answer(rng, prompt, EVEN)
        difference = reward(prompt, one) - reward(prompt, other)
        if difference != 0:
            break
    chosen, rejected = (one, other) if difference > 0 else (other, one)
    return {
        "prompt": user(prompt),
        "chosen": assistant(chosen),
        "rejected": assistant(rejected),
        "group": _read_prompt(prompt)["topic"],
        "margin": abs(difference),
        "score_chosen": reward(prompt, chosen),
        "score_rejected": reward(prompt, rejected),
        "rewards_chosen": rewards(prompt, chosen),
        "rewards_rejected": rewards(prompt, rejected),
    }
