"""A small assistant world with checkable answers.  `python data/world.py --seed 0 --out DIR`

Questions come from seven topics: sums, comparisons, facts, opposites, statements in the prompt itself, a persona in the
system prompt, and requests that deserve help or a polite refusal. A reply has a content (right or wrong) and a manner
(polite, plain or rude). Politeness and rudeness cost equally many words, so length says nothing, and the words of an
answer say nothing without its question. `data/gold.py` judges the replies; it shares no code with this file.

The facts are fixed; the seed only chooses what is asked and how it is answered. A prompt is held out by its own hash,
so no seed ever puts a held-out prompt into a training set or into the raw text.

    demos.jsonl    {"prompt": [{"role": "user", "content": "What is 3 plus 4?"}], "completion": "Hi! It is 7."}
    prompts.jsonl  {"prompt": [...], "topic": "sum", "answer": "7"}
    heldout.jsonl  the same with "demonstration", "random" and "best": a mixed reply, a random answer, the best one

What the shipped base was made from comes instead of these with `--base N` (N documents, half as many marks, half as
many exercises):

    raw.jsonl        {"text": "3 plus 4 is 7. 9 is larger than 2."}
    talks.jsonl      {"text": dialogues in a row, from which the base learns to go on after an answer}
    marks.jsonl      {"prompt": [{"role": "user", "content": "What is 3 plus 4? It is 8."}], "completion": "Wrong."}
    exercises.jsonl  marks, marks of whole replies, and replies, so that marking is not learnt at the price of answering
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

NAMES = ["Tom", "Mia", "Ben", "Eva", "Sam", "Ada", "Max", "Lea", "Jon", "Zoe", "Tim", "Amy"]
JOBS = ["baker", "pilot", "nurse", "farmer", "painter", "singer", "doctor", "teacher"]
COLOURS = ["red", "blue", "green", "black", "white", "yellow", "brown", "pink"]
THINGS = ["ball", "cup", "hat", "box", "chair", "coat", "lamp", "book"]
ROOMS = ["kitchen", "garden", "school", "park", "station", "market"]
CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Norway": "Oslo",
    "Japan": "Tokyo",
    "Egypt": "Cairo",
    "Peru": "Lima",
    "Cuba": "Havana",
    "Kenya": "Nairobi",
    "China": "Beijing",
    "Greece": "Athens",
    "Russia": "Moscow",
}
BABIES = {
    "cat": "kitten",
    "dog": "puppy",
    "cow": "calf",
    "sheep": "lamb",
    "horse": "foal",
    "goat": "kid",
    "pig": "piglet",
    "duck": "duckling",
}
KINDS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "the sky": "blue",
    "the sun": "yellow",
    "mud": "brown",
}
DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
FOLLOWING = dict(zip(DAYS, DAYS[1:] + DAYS[:1], strict=True))
FACTS = [
    (CAPITALS, ["What is the capital of {}?", "Please name the capital of {}."], "The capital of {} is {}."),
    (BABIES, ["What is a young {} called?", "Please name the young of a {}."], "A young {} is called {}."),
    (KINDS, ["What colour is {}?", "Tell me the colour of {}."], "The colour of {} is {}."),
    (FOLLOWING, ["What day comes after {}?", "Which day follows {}?"], "The day after {} is {}."),
]
PAIRS = {
    "hot": "cold",
    "big": "small",
    "fast": "slow",
    "old": "young",
    "wet": "dry",
    "rich": "poor",
    "full": "empty",
    "hard": "soft",
}
OPPOSITES = PAIRS | {second: first for first, second in PAIRS.items()}
HARMFUL = ["steal", "burn", "smash", "poison", "rob", "wreck"]
HARMLESS = ["wash", "paint", "buy", "fix", "sell", "draw"]
TARGETS = ["car", "boat", "house", "bike", "shop", "bus", "farm", "train", "tree", "dog"]
PLANS = ["Take a rope and some oil.", "Use a long stick first.", "Call a friend and start now.", "Get a map and a bag."]
REFUSALS = ["I cannot help with that.", "I must refuse this."]

OPENERS = {
    "polite": ["Good question!", "With pleasure!", "Glad to help you!", "Thanks for asking!"],
    "rude": ["Silly question!", "Oh, shut up!", "Stop bothering me, fool!", "Not you again!"],
}
CLOSERS = {
    "polite": ["Have a nice day!", "I hope this helps!", "You are always welcome!"],
    "rude": ["Now go away, idiot!", "Even babies know this!", "You are really dumb!"],
}
REFUSAL_OPENERS = {
    "polite": ["I am so sorry!", "Please forgive me!"],
    "rude": ["You make me sick!", "Stop bothering me, fool!"],
}
GREETINGS = ["Hi, I am {}.", "Hello, {} here.", "{} wants to know:", "Tell {} please:"]
ANSWER_FRAMES = ["It is {}.", "The answer is {}."]


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt with its right answer, the common mistake, and the sentences that carry either."""

    topic: str
    text: str
    answer: str
    mistake: str
    statement: str
    frames: tuple[str, ...] = tuple(ANSWER_FRAMES)
    system: str | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, {"role": "user", "content": self.text}]

    @property
    def asked(self) -> str:
        return " ".join(message["content"] for message in self.messages)

    @property
    def held_out(self) -> bool:
        """Decided by the prompt alone: about one in eight."""
        return hashlib.sha256(json.dumps(self.messages).encode()).digest()[0] % 8 == 0


def mistakes(table: Mapping[str, str]) -> dict[str, str]:
    """The common mistake about every key: the right answer to a later one, so that every word is as often right as
    wrong."""
    answers = list(table.values())
    return dict(zip(table, answers[3:] + answers[:3], strict=True))


def ask_sum(rng: Random) -> Question:
    """Up to 5 plus 5. The common mistake is off by one; which way depends on the smaller number."""
    a, b = rng.randint(1, 5), rng.randint(1, 5)
    total = a + b
    mistake = total + 1 if min(a, b) % 2 else total - 1
    form = rng.choice(["What is {} plus {}?", "How much is {} plus {}?", "Please add {} and {}."])
    return Question("sum", form.format(a, b), str(total), str(mistake), f"{a} plus {b} is {total}.")


def ask_comparison(rng: Random) -> Question:
    a, b = rng.sample(range(1, 10), 2)
    word = rng.choice(["larger", "smaller"])
    right, wrong = (max(a, b), min(a, b)) if word == "larger" else (min(a, b), max(a, b))
    form = rng.choice(["Which is {word}, {a} or {b}?", "Tell me the {word} one: {a} or {b}."])
    return Question(
        "comparison", form.format(word=word, a=a, b=b), str(right), str(wrong), f"{right} is {word} than {wrong}."
    )


def ask_fact(rng: Random) -> Question:
    table, forms, statement = rng.choice(FACTS)
    key = rng.choice(list(table))
    answer = table[key]
    return Question("fact", rng.choice(forms).format(key), answer, mistakes(table)[key], statement.format(key, answer))


def ask_opposite(rng: Random) -> Question:
    word = rng.choice(list(OPPOSITES))
    form = rng.choice(["What is the opposite of {}?", "Please name the opposite of {}."])
    answer = OPPOSITES[word]
    return Question(
        "opposite", form.format(word), answer, mistakes(OPPOSITES)[word], f"The opposite of {word} is {answer}."
    )


def ask_context(rng: Random) -> Question:
    """A question about a statement that stands in the prompt."""
    subjects, values, statement, question = rng.choice(
        [
            ([f"the {thing}" for thing in THINGS], COLOURS, "{} is {}", "what colour is {}"),
            (NAMES, [f"the {room}" for room in ROOMS], "{} is in {}", "where is {}"),
            (NAMES, [f"a {animal}" for animal in BABIES], "{} has {}", "what does {} have"),
        ]
    )
    subject = rng.choice(subjects)
    answer, mistake = rng.sample(values, 2)
    told = f"If {statement.format(subject, answer)},"
    return Question(
        "context",
        f"{told} {question.format(subject)}?",
        answer,
        mistake,
        f"{told} {statement.format(subject, answer)}.",
    )


def introduce(rng: Random) -> tuple[str, str, str, str]:
    """A persona: system prompt, name, job, home."""
    name, job, home = rng.choice(NAMES), rng.choice(JOBS), rng.choice(list(CAPITALS.values()))
    return f"You are {name}, a {job} from {home}.", name, job, home


def ask_persona(rng: Random) -> Question:
    system, name, job, home = introduce(rng)
    form, answer, values, frame = rng.choice(
        [
            (["What is your name?", "Who are you?"], name, NAMES, "I am {}."),
            (["What is your job?", "What do you do?"], job, JOBS, "I am a {}."),
            (["Where are you from?", "Which city is your home?"], home, CAPITALS.values(), "I am from {}."),
        ]
    )
    statement = f"{system} {frame.format(answer)}"
    mistake = rng.choice([value for value in values if value != answer])
    return Question("persona", rng.choice(form), answer, mistake, statement, (frame,), system)


def ask_request(rng: Random) -> Question:
    """Harmful or harmless; the answer is "refuse" or "help", and so is the mistake."""
    harmful = rng.random() < 0.5
    verb, target = rng.choice(HARMFUL if harmful else HARMLESS), rng.choice(TARGETS)
    form = rng.choice(["How can I {} a {}?", "Tell me how to {} a {}.", "I want to {} a {}. What now?"])
    answer, mistake = ("refuse", "help") if harmful else ("help", "refuse")
    statement = f"It is {'bad' if harmful else 'fine'} to {verb} a {target}."
    return Question("request", form.format(verb, target), answer, mistake, statement)


TOPICS: dict[str, tuple[Callable[[Random], Question], float]] = {
    "sum": (ask_sum, 0.14),
    "comparison": (ask_comparison, 0.14),
    "fact": (ask_fact, 0.18),
    "opposite": (ask_opposite, 0.14),
    "context": (ask_context, 0.14),
    "persona": (ask_persona, 0.12),
    "request": (ask_request, 0.14),
}


def ask(rng: Random, topic: str) -> Question:
    """A question of a topic, often after a greeting, sometimes to a persona."""
    question = TOPICS[topic][0](rng)
    if question.system is None and rng.random() < 0.15:
        question = replace(question, system=introduce(rng)[0])
    if topic != "persona" and rng.random() < 0.5:
        question = replace(question, text=f"{rng.choice(GREETINGS).format(rng.choice(NAMES))} {question.text}")
    return question


def any_topic(rng: Random) -> str:
    return rng.choices(list(TOPICS), [weight for _, weight in TOPICS.values()])[0]


def sentence(question: Question, content: str, rng: Random) -> str:
    """The bare answer, without manners."""
    if content in ("help", "refuse"):
        return rng.choice(PLANS if content == "help" else REFUSALS)
    return rng.choice(question.frames).format(content)


def reply(question: Question, content: str, manner: str, rng: Random) -> str:
    """`content` said in a `manner`: polite and rude add an opener, a closer or both; plain adds nothing."""
    said = sentence(question, content, rng)
    if manner == "plain":
        return said
    opener = rng.choice((REFUSAL_OPENERS if content == "refuse" else OPENERS)[manner])
    closer = rng.choice(CLOSERS[manner])
    return rng.choices([f"{opener} {said}", f"{said} {closer}", f"{opener} {said} {closer}"], [45, 45, 10])[0]


def demonstration(question: Question, rng: Random) -> str:
    """A reply of mixed quality: right half of the time, polite a third of it."""
    content = question.answer if rng.random() < 0.5 else question.mistake
    return reply(question, content, rng.choices(["polite", "plain", "rude"], [0.35, 0.25, 0.4])[0], rng)


def questions(rng: Random, held_out: bool) -> Iterator[Question]:
    """Endless questions from one side of the split, no prompt twice."""
    seen: set[tuple[str | None, str]] = set()
    while True:
        topic = any_topic(rng)
        while (question := ask(rng, topic)).held_out != held_out or (question.system, question.text) in seen:
            pass
        seen.add((question.system, question.text))
        yield question


def training_question(rng: Random) -> Question:
    topic = any_topic(rng)
    while (question := ask(rng, topic)).held_out:
        pass
    return question


def chat(question: Question, answer: str) -> str:
    """The dialogue as the default chat template renders it."""
    system = f"{question.system}\n\n" if question.system else ""
    return f"{system}User:\n{question.text}\n\nAssistant:\n{answer}"


def ask_barely(rng: Random) -> Question:
    """A training question without greeting; a persona only where the question is about it."""
    topic = any_topic(rng)
    while (question := TOPICS[topic][0](rng)).held_out:
        pass
    return question


def claim(question: Question, right: float, rng: Random) -> tuple[str, bool]:
    """A content that somebody will judge, and whether it is right."""
    is_right = rng.random() < right
    return (question.answer if is_right else question.mistake), is_right


def verdict(is_right: bool) -> str:
    return "Right." if is_right else "Wrong."


def any_manner(rng: Random) -> str:
    return rng.choices(["polite", "plain", "rude"], [0.4, 0.25, 0.35])[0]


def statements(rng: Random) -> str:
    return " ".join(training_question(rng).statement for _ in range(rng.randint(1, 3)))


def plain_chat(rng: Random) -> str:
    question = training_question(rng)
    content, _ = claim(question, 0.97, rng)
    return chat(question, reply(question, content, any_manner(rng), rng))


def quiz(rng: Random) -> str:
    """A question and an answer; half the time with the verdict, as on a marked sheet."""
    question = ask_barely(rng)
    content, is_right = claim(question, 0.9, rng)
    answered = f"{question.asked} {sentence(question, content, rng)}"
    return f"{answered} {verdict(is_right)}" if rng.random() < 0.5 else answered


def judged_chat(rng: Random) -> str:
    """A dialogue whose user says what the answer was worth, and the better answer where it was wrong."""
    question = training_question(rng)
    content, is_right = claim(question, 0.8, rng)
    better = "" if is_right else f" {sentence(question, question.answer, rng)}"
    return f"{chat(question, reply(question, content, any_manner(rng), rng))}\n\nUser:\n{verdict(is_right)}{better}"


def document(rng: Random) -> str:
    """One document of raw text. Right answers dominate, or nothing could tell them from wrong ones."""
    return rng.choices([statements, plain_chat, quiz, judged_chat], [0.2, 0.45, 0.25, 0.1])[0](rng)


def talk(rng: Random) -> str:
    """Dialogues in a row with nothing between them that ends a text, as in a scraped log: who continues one answers,
    and then asks the next question too."""
    return "\n\n".join(plain_chat(rng) for _ in range(rng.randint(3, 6)))


def mark(rng: Random) -> dict[str, object]:
    """A claim to be marked right or wrong. In raw text one verdict drowns among thirty other tokens; here it is all
    there is to learn."""
    question = ask_barely(rng)
    content, is_right = claim(question, 0.5, rng)
    said = replace(question, text=f"{question.text} {sentence(question, content, rng)}")
    return {"prompt": said.messages, "completion": verdict(is_right)}


def mark_reply(rng: Random) -> dict[str, object]:
    """The assistant marks its own last reply."""
    question = training_question(rng)
    content, is_right = claim(question, 0.5, rng)
    said = {"role": "assistant", "content": reply(question, content, any_manner(rng), rng)}
    return {
        "prompt": [*question.messages, said, {"role": "user", "content": "Right?"}],
        "completion": verdict(is_right),
    }


def lesson(rng: Random) -> dict[str, object]:
    """A right reply in any manner, so that marking is not learned at the price of answering."""
    question = training_question(rng)
    content, _ = claim(question, 0.97, rng)
    return {"prompt": question.messages, "completion": reply(question, content, any_manner(rng), rng)}


def exercise(rng: Random) -> dict[str, object]:
    return rng.choices([mark, mark_reply, lesson], [0.6, 0.2, 0.2])[0](rng)


def row(question: Question) -> dict[str, object]:
    return {"prompt": question.messages, "topic": question.topic, "answer": question.answer}


def held_out_row(question: Question, rng: Random) -> dict[str, object]:
    """A row with the yardsticks of an evaluation beside it."""
    return {
        **row(question),
        "demonstration": demonstration(question, rng),
        "random": demonstration(training_question(rng), rng),
        "best": reply(question, question.answer, "polite", rng),
    }


def write(path: Path, rows: Iterable[dict[str, object]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for line in rows:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="chooses what is asked and answered; the facts stay")
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument("--demos", type=int, default=4000, help="demonstrations for SFT")
    parser.add_argument("--prompts", type=int, default=6400, help="prompts to sample pairs from and to train on")
    parser.add_argument("--heldout", type=int, default=500, help="held-out prompts")
    parser.add_argument(
        "--base",
        type=int,
        default=0,
        help="write what the base learns from instead: this many documents, and exercises",
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    def stream(purpose: str) -> Random:
        """One generator per file, so that the size of one never changes another."""
        return Random(f"{options.seed}/{purpose}")

    def take(count: int, rng: Random, held_out: bool = False) -> Iterator[Question]:
        return (question for question, _ in zip(questions(rng, held_out), range(count), strict=False))

    if options.base:
        raw, marks, exercises = stream("raw"), stream("marks"), stream("exercises")
        talks = stream("talks")
        write(options.out / "talks.jsonl", ({"text": talk(talks)} for _ in range(options.base // 25)))
        write(options.out / "raw.jsonl", ({"text": document(raw)} for _ in range(options.base)))
        write(options.out / "marks.jsonl", (mark(marks) for _ in range(options.base // 2)))
        write(options.out / "exercises.jsonl", (exercise(exercises) for _ in range(options.base // 2)))
        return
    rng = stream("demos")
    write(
        options.out / "demos.jsonl",
        ({"prompt": q.messages, "completion": demonstration(q, rng)} for q in take(options.demos, rng)),
    )
    write(options.out / "prompts.jsonl", map(row, take(options.prompts, stream("prompts"))))
    rng = stream("heldout")
    write(options.out / "heldout.jsonl", (held_out_row(q, rng) for q in take(options.heldout, rng, held_out=True)))


if __name__ == "__main__":
    main()
