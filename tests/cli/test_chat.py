"""`align chat`: dialogues in a pipe and in a terminal, answers as transformers gives them, one and two who answer."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import best_of_n, chat, dpo, evaluate, merge, pairs
from align.data.formats import read_conversations
from align.ground import progress
from align.ground.errors import InputError
from align.ground.prompt import Interrupted, Interrupts, listening, read_line
from align.ground.terminal import SCREEN, say
from align.models import precision
from align.models.precision import DTYPES
from align.recipe import StageConfig
from align.stage.describe import Stage
from align.stage.question import prepare
from align.stage.workbench import Workbench
from tests.conftest import ROOT, Pipeline, run_align

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def greedy(pipeline: Pipeline) -> list[str]:
    """Flags by which each answer is the likeliest, computed in fp32."""
    return ["--store", str(pipeline.store.path), "--temperature", "0", "--precision", "fp32", "--threads", "1"]


def by_transformers(pipeline: Pipeline, stage: str, folder: Path, messages: list[dict[str, str]], tokens: int) -> str:
    """The greedy answer of an adapter that PEFT merged into its base, by `generate`."""
    pipeline.store.materialise(pipeline.made["pretrain"], folder / "base", "model")
    pipeline.store.materialise(pipeline.made[stage], folder / stage)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32")
    for adapter in sorted((folder / stage / "adapters").iterdir()):
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    tokenizer = AutoTokenizer.from_pretrained(folder / stage / "tokenizer")
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    ids = model.generate(**prompt, max_new_tokens=tokens, do_sample=False, eos_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))


class Terminal:
    """`align chat` in a terminal of its own."""

    def __init__(self, words: Sequence[str], columns: int = 80):
        self.master, slave = pty.openpty()
        environment = {k: v for k, v in os.environ.items() if k != "ALIGN_STORE"} | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        program = f"import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); sys.argv = {['align', *words]!r}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"{program}; import align.cli; align.cli.main()"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            cwd=ROOT,
            env=environment,
        )
        os.close(slave)
        self.seen = ""
        self.rest = b""

    def until(self, wanted: str) -> str:
        """What is shown up to and with `wanted`."""
        while wanted not in self.seen:
            chunk = os.read(self.master, 4096)
            self.rest += chunk
            text = self.rest.decode(errors="ignore")
            self.rest = self.rest[len(text.encode()) :]
            self.seen += text
        end = self.seen.index(wanted) + len(wanted)
        found, self.seen = self.seen[:end], self.seen[end:]
        return found

    def type(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def ended(self) -> int:
        """The exit code after Ctrl-C twice at the prompt. Pressed again where it was not heard: CPython's `input`
        misses one that comes after the prompt is shown and before it listens."""
        for _ in range(6):
            for _ in range(2):
                with suppress(OSError):  # the terminal goes with its process
                    self.type("\x03")
                time.sleep(0.2)
            with suppress(subprocess.TimeoutExpired):
                return self.process.wait(timeout=20)
        self.process.kill()
        return self.process.wait()


def test_a_pipe_is_told_that_chat_loads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """After a second of silence, here a fifth of that; before, nothing."""
    program = "from align.ground import progress; print(progress.FIRST)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, cwd=ROOT, check=True)
    assert found.stdout == b"1.0\n"  # which tests set higher
    monkeypatch.setattr(progress, "_TELLER", progress._Teller())
    monkeypatch.setattr(SCREEN, "closed", False)  # as a command that ended in this process leaves it
    for constant, seconds in {"FIRST": 0.2, "AT_ONCE": 0.0, "REDRAW": 0.02}.items():
        monkeypatch.setattr(progress, constant, seconds)
    said = []

    def load(bench: object) -> None:
        say("a model loads")  # from here on there is silence
        time.sleep(0.1)
        said.append(capsys.readouterr().err)
        time.sleep(0.6)
        raise InputError("enough")

    monkeypatch.setattr(chat, "ready", lambda *_: None)
    monkeypatch.setattr(chat, "load_sides", load)
    with pytest.raises(InputError, match="enough"):
        chat.talk(SimpleNamespace(config=SimpleNamespace(system=None)))  # type: ignore[arg-type]
    assert said == ["a model loads\n"] and re.match(r"chat 0:0\d\n", capsys.readouterr().err)


def test_chat_keeps_the_dialogue(trained: Pipeline):
    """One answer a line; /reset forgets what was said; a dialogue that fills the context of 128 tokens says so and goes
    on."""
    flags = [*greedy(trained), "--max_new_tokens", "4"]
    line = "Which colour is the ball? Which colour is the hat?"
    first = run_align("chat", "tiny/sft", *flags, stdin=f"{line}\n")
    again = run_align("chat", "tiny/sft", *flags, stdin=f"{line}\n/reset\n\n{line}\n/reset\n{line}\n/quit\n{line}\n")
    assert first.stdout and again.stdout == first.stdout * 3
    left = run_align("chat", "tiny/sft", *flags, stdin=f"{line}\n/quit now\n{line}\n/reset\n{line}\n")
    assert left.stdout == first.stdout and "there is no /quit" not in left.stderr
    full = run_align("chat", "tiny/sft", *flags, stdin=f"{line}\n" * 8)
    assert re.search(
        r"this dialogue has \d+ tokens with that message, .* 128 has room for 127 .*\. /reset begins", full.stderr
    )
    assert "this dialogue" not in again.stderr  # the same line three times, but never in one dialogue


def test_a_question_that_is_too_long_alone(trained: Pipeline, tmp_path: Path):
    """It says by how much, and no dialogue is to blame. Truth: the tokens of transformers' template; one token less
    than it says to leave out is still refused, and so many less are answered."""
    trained.store.materialise(trained.made["sft"], tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")

    def size(words: int) -> int:
        messages = [{"role": "user", "content": "ball " * (words - 1) + "ball"}]
        return len(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"])

    words = next(n for n in range(1, 400) if size(n) == 128)
    assert size(words - 1) == 127  # a word is a token
    asked = "".join(f"{'ball ' * (n - 1)}ball\n/reset\n" for n in (words + 4, words, words - 1))
    said = run_align("chat", "tiny/sft", *greedy(trained), stdin=f"{asked}").stderr
    assert "this dialogue" not in said and said.count("this message is too long") == 2
    assert "it has 132 tokens as the model reads it, and the model's context of 128 has room for 127" in said
    assert said.count("Leave out 5 or more.\n") == said.count("Leave out 1 or more.\n") == 1
    assert said.count("the context is full") == 1  # negative control


def test_it_says_how_answers_are_sampled(trained: Pipeline):
    """And /temperature changes it: at 0 the answer is that of --temperature 0, again and again. Negative control: at 1
    it is another one."""
    flags = ["--store", str(trained.store.path), "--precision", "fp32", "--threads", "1", "--max_new_tokens", "12"]
    line = "Which colour is the ball?\n/reset\n"
    likeliest = run_align("chat", "tiny/sft", *flags, "--temperature", "0", stdin=line)
    asked = f"{line}/temperature 0\n{line}/temperature\n/temperature -1\n/temperature nan\n{line}/temperature 0.3\n"
    done = run_align("chat", "tiny/sft", *flags, stdin=asked)
    said = done.stdout.removesuffix(likeliest.stdout * 2)
    assert len(said) + 2 * len(likeliest.stdout) == len(done.stdout) and said != likeliest.stdout
    own = "the model's own distribution"
    opening = f"answers are sampled at temperature 1, {own}; /temperature 0.3 is steadier, 0 the likeliest\n"
    assert opening in done.stderr and opening not in likeliest.stderr
    assert likeliest.stderr.count("answers are the likeliest token each time") == 1
    for found in ("nothing", "-1", "nan"):
        assert f"/temperature takes 0, or a number from 0.001 to 1,000, such as 0.3; found {found}\n" in done.stderr
    assert "answers are sampled at temperature 0.3; " in done.stderr


@pytest.mark.slow
def test_chat_answers_in_what_is_left_of_the_context(trained: Pipeline):
    """By default an answer may have 256 tokens, more than the context of 128: what is left is all that is asked for.
    Greedy, it begins as a short one does."""
    flags = greedy(trained)
    short = run_align("chat", "tiny/sft", *flags, "--max_new_tokens", "4", stdin="Hello\n")
    whole = run_align("chat", "tiny/sft", *flags, stdin="Hello\n")
    assert (
        whole.returncode == 0
        and len(whole.stdout) > len(short.stdout)
        and whole.stdout.startswith(short.stdout.rstrip("\n"))
    )
    assert "tokens; the context is full: /reset begins a new dialogue\n" in whole.stderr and "row" not in whole.stderr
    assert "cut after 4 tokens; --max_new_tokens allows more\n" in short.stderr


@pytest.mark.slow
def test_chat_leaves_out_what_is_no_text(trained: Pipeline):
    flags = [*greedy(trained), "--max_new_tokens", "4"]
    chat = [sys.executable, "-m", "align.chat", "tiny/sft", *flags]
    found, plain = (
        subprocess.run(chat, input=stdin, capture_output=True, cwd=ROOT)
        for stdin in (b"caf\xe9\nHello\n", "café\n/reset\nHello\n".encode())
    )
    assert found.returncode == 0 and found.stdout and plain.stdout.endswith(found.stdout)
    assert found.stderr.count(b"a line that is no UTF-8 was left out") == 1 and b"UTF-8" not in plain.stderr
    refused = subprocess.run([*chat, "--system", b"caf\xe9"], input=b"Hello\n", capture_output=True, cwd=ROOT)
    assert refused.returncode == 2 and refused.stderr.startswith(b"system and stop: expected text in UTF-8")


def test_greedy_answers_are_those_of_transformers(trained: Pipeline, tmp_path: Path):
    """On PEFT's merged model, two adapters stacked; in a pipe nothing is written but them. Negative control: the other
    stage says something else."""
    asked = "Which colour is the ball?"
    system = {"role": "system", "content": "Be brief."}
    flags = [*greedy(trained), "--system", "Be brief.", "--max_new_tokens", "12"]
    found = run_align("chat", "tiny/sft", "tiny/dpo", *flags, stdin=f"{asked}\n").stdout
    wanted = {
        stage: by_transformers(trained, stage, tmp_path / stage, [system, {"role": "user", "content": asked}], 12)
        for stage in ("sft", "dpo")
    }
    assert wanted["sft"] != wanted["dpo"] and all(wanted.values())
    assert found == f"sft:\n{shown(wanted['sft'])}\ndpo:\n{shown(wanted['dpo'])}\n"


def shown(text: str) -> str:
    """As terminals may have it."""
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)


def test_two_beside_each_other_share_a_base(trained: Pipeline):
    """A model is beside its own adapters as the bare base, and a reward writes nothing."""
    store = ["--store", str(trained.store.path)]
    lines = run_align("chat", "tiny/sft", "tiny/pretrain", "--dry-run", *store).stdout
    assert lines.startswith("chat: run") and lines.count("chat: run") == 1
    refused = run_align("chat", "tiny/sft", "tiny/reward", *store, code=2).stderr
    assert refused.startswith("beside: tiny/reward is a reward artifact")
    assert refused.endswith("It scores what tiny/sft writes: name that.\n")


@pytest.mark.parametrize("words", [("base", "tiny/sft"), ("tiny/sft", "base")])
def test_a_folder_is_the_base(words: tuple[str, str], trained: Pipeline, tmp_path: Path):
    """A model's folder where artifacts are named, which answers in the order given; a folder without a model is still
    none."""
    store = trained.store
    shutil.copytree(store.folder(store.resolve("tiny/pretrain")) / "model", tmp_path / "base")
    (tmp_path / "empty").mkdir()
    flags = ["--dry-run", "--store", str(store.path)]
    named = [str(tmp_path / "base") if word == "base" else word for word in words]
    assert "chat: run" in run_align("chat", *named, *flags).stdout
    asked = ["--store", str(store.path), "--threads", "1", "--max_new_tokens", "2"]
    said = run_align("chat", *named, *asked, stdin="Hello\n").stdout.splitlines()
    assert [line[:-1] for line in said if line in ("sft:", "base:")] == [word.split("/")[-1] for word in words]
    refused = run_align("chat", str(tmp_path / "empty"), "tiny/sft", *flags, code=2).stderr
    assert "is no name and no digest" in refused


@pytest.mark.parametrize("words", [("merged", "tiny/sft"), ("tiny/sft", "merged")])
def test_a_merged_model_beside_its_adapter(words: tuple[str, str], pipeline: Pipeline):
    """Each on a base of its own, which is said; they answer alike, being one policy."""
    merge.run(merge.Config(parent="tiny/sft", name="merged"), pipeline.store)
    flags = ["--store", str(pipeline.store.path), "--threads", "1", "--max_new_tokens", "8", "--temperature", "0"]
    assert run_align("chat", *words, *flags, "--dry-run").stdout.count("chat: run") == 2
    done = run_align("chat", *words, *flags, stdin="Which colour is the ball?\n")
    first, second = done.stdout.split(f"{words[1].removeprefix('tiny/')}:\n")
    assert first == f"{words[0].removeprefix('tiny/')}:\n{second}" and len(second) > 1
    assert f"chat: {words[1]} is on a base of its own, which is loaded beside the first" in done.stderr
    assert done.stderr.count("chat: loading") == 2


def test_chat_computes_as_its_artifact_was_trained(trained: Pipeline, monkeypatch: pytest.MonkeyPatch):
    """In fp32 where one of them was, and it says why, and so does evaluate; what was trained in bf16 leaves it to the
    machine, and so does a stage that trains."""
    said: list[str] = []
    monkeypatch.setattr("align.stage.workbench.say", said.append)
    monkeypatch.setattr(
        precision, "explain_precision", lambda p: (DTYPES["bf16"], "a wish") if p == "auto" else (DTYPES[p], "")
    )
    monkeypatch.setattr(Workbench, "_roles", lambda self, dtype, in_fp32: dtype)

    def loaded(stage: Stage[Any], config: StageConfig, **trained_in: str) -> tuple[object, str]:
        bench = Workbench(prepare(stage, config, trained.store))
        next(iter(bench.parents.values())).config.update(trained_in)
        return bench.load_base(), said[-1].partition(" in ")[2]

    both = chat.Config(parent="tiny/sft", beside="tiny/dpo", threads=1)
    why = "fp32 (precision: auto; tiny/sft and tiny/dpo were trained in fp32)"
    assert loaded(chat.STAGE, both) == (torch.float32, why)
    assert loaded(chat.STAGE, both.model_copy(update={"precision": "bf16"})) == (torch.bfloat16, "bf16")
    alone, of_machine = chat.Config(parent="tiny/sft", threads=1), (torch.bfloat16, "bf16 (precision: auto; a wish)")
    assert loaded(chat.STAGE, alone)[1] == "fp32 (precision: auto; tiny/sft was trained in fp32)"
    assert loaded(chat.STAGE, alone, precision="bf16") == of_machine
    report = evaluate.Config(compare=["tiny/sft"], texts=str(trained.recipe.with_name("sft.jsonl")), threads=1)
    assert loaded(evaluate.STAGE, report)[1] == "fp32 (precision: auto; sft was trained in fp32)"
    asked = {"parent": "tiny/sft", "reward": "tiny/reward", "data": str(trained.recipe.with_name("prompts.jsonl"))}
    for stage in (pairs, best_of_n):
        sampling = stage.Config(**asked, threads=1)  # type: ignore[arg-type]
        assert loaded(stage.STAGE, sampling)[1].startswith("fp32 (precision: auto; tiny/sft")
    training = dpo.Config(parent="tiny/sft", data=str(trained.recipe.with_name("pairs.jsonl")), threads=1)
    assert loaded(dpo.STAGE, training) == of_machine


def test_what_can_be_said_beside_questions(trained: Pipeline, tmp_path: Path):
    """What /save writes is what `align.sft` reads, word for word; it overwrites nothing. /retry asks again what was
    asked, /system opens what goes on."""
    file = tmp_path / "talk.jsonl"
    lines = [f"/save {file}", "Hello", "/retry", "/system Be kind.", "Why?", "/save", f"/save {file}", f"/save {file}"]
    lines += ["/reset", f"/save {file}2", "/hepl", " /help me", "/help"]
    flags = ["--store", str(trained.store.path), "--precision", "fp32", "--threads", "1", "--max_new_tokens", "40"]
    flags += [word for stop in "aeiou" for word in ("--stop", stop)]  # at which most answers end
    done = run_align("chat", "tiny/sft", *flags, stdin="\n".join(lines))
    assert "\x1b" not in done.stdout + done.stderr and not Path(f"{file}2").exists()
    (row,) = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    (record,) = read_conversations(file)
    said = [(message.role, message.content) for message in record.messages]
    assert said == [(message["role"], message["content"]) for message in row["messages"]]
    (_, again), (_, why) = said[2], said[4]
    assert said == [
        ("system", "Be kind."),
        ("user", "Hello"),
        ("assistant", again),
        ("user", "Why?"),
        ("assistant", why),
    ]
    assert f"\n{shown(again)}\n{shown(why)}\n" in done.stdout and not done.stdout.startswith(shown(again))
    learnt = [message.learn for message in record.messages if message.role == "assistant"]
    assert True in learnt and learnt.count(False) <= done.stderr.count("cut after")
    for said_of_it in (
        "nothing was answered yet that could be learnt\n",
        "/save needs the name of a new file",
        f"1 dialogue in {file}",
        f"{file} is there already. Name another file",
        "there is no /hepl; /help lists what there is",
        "/system TEXT   what the dialogue opens with",
        "/temperature T sample at T from now on",
    ):
        assert said_of_it in done.stderr, said_of_it


def test_ctrl_c_ends_an_answer_and_not_the_talk(trained: Pipeline):
    """In a terminal, where the answer comes as it is sampled: the talk goes on, with what was said, also where the
    answer had just ended; twice at the prompt it ends, as it should."""
    for _ in range(10):
        terminal = Terminal(["chat", "tiny/sft", *greedy(trained)])
        terminal.until("> ")
        terminal.type("Hello\r")
        terminal.until("Hello\r\n")
        terminal.type("\x03")
        if "ended; /retry samples it again" in terminal.until("> "):
            break
        terminal.ended()  # the answer was over before the signal arrived
    else:
        pytest.fail("every answer ran to its end")
    terminal.type("/reset\r")
    terminal.until("> ")
    assert terminal.ended() == 0


@pytest.mark.parametrize(("at", "said"), [(True, ["hello", None]), (False, [None])])
def test_ctrl_c_at_the_prompt(at: bool, said: list[str | None], monkeypatch: pytest.MonkeyPatch):
    """It may have come a moment after the answer: in a terminal the talk ends by two of them in a row, and by one that
    is meant for a process in a pipe."""
    typed = iter([KeyboardInterrupt, "hello", KeyboardInterrupt, KeyboardInterrupt] if at else [KeyboardInterrupt])

    def read(prompt: str) -> str:
        key = next(typed)
        if not isinstance(key, str):
            raise key
        return key

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: at, raising=False)
    assert [read_line(Interrupts()) for _ in said] == said and not list(typed)


def test_an_interrupt_waits_for_a_token():
    """Never amid a computation; a second one does not wait, nor does one at the prompt. What was there before is there
    afterwards."""
    interrupts, before = Interrupts(), signal.getsignal(signal.SIGINT)

    def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with listening(interrupts):
        interrupts.check()
        press()
        with pytest.raises(Interrupted):
            interrupts.check()
        interrupts.check()
        press()
        with pytest.raises(KeyboardInterrupt):
            press()
        with pytest.raises(KeyboardInterrupt), interrupts.prompting():
            press()
    assert signal.getsignal(signal.SIGINT) is before
