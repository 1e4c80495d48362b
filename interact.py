"""Chat in the terminal with a fine-tuned dialog agent.

    python interact.py                                   the released model, downloaded once
    python interact.py --model_checkpoint runs/my_run    your own
    echo "do you have any pets ?" | python interact.py   a line out for each line in: a reply, or nothing for commands

In the chat, /help lists the commands.
"""

import logging
import os
import random
import re
import sys
from dataclasses import asdict
from pathlib import Path

from convai.data.lost_text import LostText
from convai.data.messages import message_line
from convai.data.parlai_text import persona_sentences
from convai.data.persona_file import read_persona
from convai.dialog.personas import draw_persona, personas_of, stored_personas
from convai.dialog.terminal import Terminal, settled
from convai.errors import UserError, report_user_errors
from convai.io.files import write_text
from convai.io.plain_text import plain_line
from convai.io.pretrained import locate_finetuned
from convai.model.word_splitting import join_punctuation
from convai.options import ChatOptions, chat_parser

COMMANDS = {
    "help": ("", "list the commands"),
    "persona": ("[new | none | SENTENCES]", "show the agent's persona, draw another, or type one"),
    "reset": ("", "forget the dialog; the persona stays"),
    "history": ("", "show the dialog so far"),
    "set": ("[NAME [VALUE]]", "show or change how replies are chosen, as in /set temperature 0.9"),
    "suggest": ("", "let the model suggest what you could say"),
    "save": ("FILE", "write the dialog to a text file, or as chat messages where its name ends in .jsonl"),
    "quit": ("", "leave, as Ctrl-D does"),
}


@report_user_errors
def main() -> None:
    args = chat_parser().parse_args()
    set_up_logging()
    rng = random.Random(args.seed)
    persona = given_persona(args)
    folder = locate_finetuned(args.model, args.model_checkpoint)
    print(f"loading {folder} ...", file=sys.stderr, flush=True)
    # This import takes seconds, so it comes after all that can be refused without it.
    from convai.dialog.loading import load_agent

    agent = load_agent(folder, args)
    personas = load_personas(args, folder, agent.tokenizer)
    agent.persona = draw_persona(personas, rng) if persona is None else persona
    terminal = Terminal()
    try:
        Chat(agent, terminal, personas, rng).run()
    except BrokenPipeError:  # whoever read the replies has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # on a terminal as good as /quit
        if not terminal.is_interactive:
            raise


def set_up_logging() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for chatty in ("httpx", "huggingface_hub", "transformers"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def given_persona(args: ChatOptions) -> list[str] | None:
    """Return the sentences that the options ask for; None where a persona is to be drawn."""
    if args.no_personality:
        if args.personality:
            raise UserError("--personality and --no_personality contradict each other; leave one out.")
        return []
    if not args.personality:
        return None
    only = args.personality[0] if len(args.personality) == 1 else ""
    if os.path.isfile(os.path.expanduser(only)):
        sentences = read_persona(Path(only).expanduser())
    elif " " not in only and ("/" in only or os.sep in only or only.lower().endswith((".txt", ".json", ".png"))):
        raise UserError(f"--personality: there is no file {only}; give one, or the sentences themselves.")
    else:
        sentences = persona_sentences(args.personality, "--personality")
    persona = [sentence for sentence in map(plain_line, sentences) if sentence]
    if not persona:
        raise UserError("--personality holds no sentence; use --no_personality to chat without a persona.")
    return persona


def load_personas(args: ChatOptions, folder: Path, tokenizer) -> list[list[str]]:
    """Return personas to draw from: of the data set given, else stored with the checkpoint, else of the example set."""
    if not args.dataset_path:
        return stored_personas(folder)
    from utils import get_dataset

    data = get_dataset(tokenizer, args.dataset_path, args.dataset_cache, False, args.reading())
    return personas_of(data["train"], tokenizer)


class Chat:
    """A user's conversation with an agent: turns, and commands that begin with a slash."""

    def __init__(self, agent, terminal: Terminal, personas: list[list[str]], rng: random.Random):
        self.agent = agent
        self.terminal = terminal
        self.personas = personas
        self.rng = rng
        self.has_ended = False
        self.start_dialog()

    def run(self) -> None:
        """Chat until the user leaves or the input ends."""
        for line in self.persona_lines():
            self.terminal.note(line)
        self.note_losses(self.agent.persona)
        if self.terminal.is_interactive:
            self.terminal.note("/help lists the commands, Ctrl-D leaves.")
        for line in self.terminal.lines():
            text = plain_line(line)
            if text and not text.startswith("/"):
                self.answer(text)
            else:
                if text:
                    self.run_command(text)
                self.terminal.no_reply()
            if self.has_ended:
                return

    def start_dialog(self) -> None:
        self.agent.reset()
        # Whom the model imagines to be when it speaks for the user: a stranger, as in the training dialogs.
        self.user_persona = draw_persona(self.personas, self.rng, but=self.agent.persona)

    def answer(self, text: str) -> None:
        """Show the agent's reply as it is made; Ctrl-C ends it early."""
        paragraph = self.terminal.paragraph(*(("bot: ", "bot") if self.terminal.is_interactive else ()))
        with self.terminal.interruptible() as was_interrupted:
            reply = self.agent.reply(text, lambda reply: paragraph.grow(settled(reply)), was_interrupted)
        paragraph.grow(f"{reply} ..." if was_interrupted() else reply)
        paragraph.end()
        self.note_losses([text])

    def note_losses(self, texts: list[str]) -> None:
        """Say so where the model's vocabulary cannot spell what somebody wrote."""
        if note := LostText(self.agent.tokenizer).add_all(texts).note():
            self.terminal.note(note)

    def run_command(self, line: str) -> None:
        """Carry out a command; what is wrong with it is said in one line."""
        name, _, argument = line[1:].partition(" ")
        try:
            if name not in COMMANDS:
                raise ValueError(f"there is no command /{name}; /help lists them")
            getattr(self, f"do_{name}")(argument.strip())
        except ValueError as error:
            self.terminal.note(str(error))

    def do_help(self, _: str) -> None:
        for name, (arguments, purpose) in COMMANDS.items():
            self.terminal.say(f"{arguments} - {purpose}".strip(), label=f"/{name} ", style="you")
        self.terminal.note("Anything else is said to the agent. Ctrl-C stops its reply.")

    def do_persona(self, argument: str) -> None:
        if argument:
            if argument == "new":
                self.agent.persona = draw_persona(self.personas, self.rng, but=self.agent.persona)
            else:
                self.agent.persona = [] if argument == "none" else split_sentences(argument)
            self.start_dialog()
        for line in self.persona_lines():
            self.terminal.say(line)
        if argument:
            self.note_losses(self.agent.persona)
            self.terminal.note("The dialog starts anew.")

    def persona_lines(self) -> list[str]:
        sentences = [f"- {join_punctuation(sentence)}" for sentence in self.agent.persona]
        return ["The agent's persona:", *sentences] if sentences else ["The agent has no persona."]

    def do_reset(self, _: str) -> None:
        self.start_dialog()
        self.terminal.note("The dialog starts anew.")

    def do_history(self, _: str) -> None:
        if not self.agent.history:
            self.terminal.note("Nothing has been said yet.")
        for who, turn in self.turns():
            self.terminal.say(turn, label=f"{who}: ", style=who)

    def turns(self) -> list[tuple[str, str]]:
        return [("bot" if i % 2 else "you", turn) for i, turn in enumerate(self.agent.history)]

    def do_set(self, argument: str) -> None:
        name, _, value = argument.partition(" ")
        settings = asdict(self.agent.settings)
        if name and name not in settings:
            raise ValueError(f"there is no setting {name}; /set lists them")
        if value:
            self.agent.change_settings(**{name: parse_setting(name, value, type(settings[name]))})
            settings = asdict(self.agent.settings)
        for shown in [name] if name else settings:
            self.terminal.say(f"{shown} {settings[shown]}")

    def do_suggest(self, _: str) -> None:
        with self.terminal.interruptible() as was_interrupted:
            suggestion = plain_line(self.agent.suggest(self.user_persona, was_interrupted))
        if self.terminal.is_interactive:
            self.terminal.suggestion = suggestion
            self.terminal.note("Enter says this; edit it first if you like.")
        else:
            self.terminal.say(suggestion)

    def do_save(self, argument: str) -> None:
        if not argument:
            raise ValueError("name a file, as in /save chat.txt")
        if not self.agent.history:
            raise ValueError("there is nothing to save: nothing has been said yet")
        path = Path(argument).expanduser()
        if path.exists():
            raise ValueError(f"{path} exists already; choose another name")
        try:
            write_text(path, self.transcript(as_messages=path.suffix.lower() == ".jsonl"))
        except OSError as error:
            raise ValueError(f"{path} cannot be written: {error.strerror}") from error
        self.terminal.note(f"Saved as {path}.")

    def transcript(self, as_messages: bool) -> str:
        """Return the dialog to be read, or as messages, which --dataset_path takes."""
        turns = [(who, plain_line(turn)) for who, turn in self.turns()]
        if as_messages:
            return message_line(list(map(plain_line, self.agent.persona)), [turn for _, turn in turns])
        return "\n".join([*self.persona_lines(), "", *(f"{who}: {turn}" for who, turn in turns)]) + "\n"

    def do_quit(self, _: str) -> None:
        self.has_ended = True


def split_sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?])\s+", text)


def parse_setting(name: str, text: str, kind: type):
    """Return the value of a setting as its type; ValueError where the text is none."""
    if kind is bool:
        words = dict.fromkeys(("on", "true", "yes", "1"), True) | dict.fromkeys(("off", "false", "no", "0"), False)
        if text.lower() not in words:
            raise ValueError(f"{name} is on or off, not {text!r}")
        return words[text.lower()]
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"{name} takes a {'whole ' if kind is int else ''}number, not {text!r}") from None


if __name__ == "__main__":
    main()
