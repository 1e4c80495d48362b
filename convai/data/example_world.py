"""A small world of personas and dialogs, generated in a second: what the demo trains on and newcomers chat with.

A persona is four facts ("i live in oslo .", "i feed my turtle ."). A user asks about them in some order and the
agent answers. The dialogs have the PersonaChat format that `example_entry.py` explains.

The world is built so that replies can only be ranked by reading the persona:

- Most distractors answer the question that was asked, with a value that other personas have and this one has not. The
  rest answer other questions with facts that are not true of this persona, or are small talk.
- Golds and distractors draw values and phrasings alike (all equally likely), so neither gives the gold away.
- Nobody is asked for the same fact twice in a dialog, and what users tell about themselves is drawn independently of
  the agent's persona, so the history does not hold the answer.
- Every value is one word that stands for nothing else, so "is this true of the persona" means finding that word.

A reader without the persona who picks any of the 13 replies (of 20) that fit the question is right once in 13 times,
and in small talk, one turn in twenty, always. One thing stays visible to a reader who compares candidates with each
other (the model scores each by itself): no distractor repeats the gold's value, whereas wrong values recur.
"""

import random
from dataclasses import dataclass
from typing import Any

N_FACTS = 4  # of a persona

Persona = dict[str, str]  # kind of fact -> value, as {"home": "oslo", "pet": "turtle", ...}


@dataclass(frozen=True)
class Fact:
    """One kind of fact. In the templates `{}` stands for the value.

    Every answer suits every question of its kind; the last one asks back.
    """

    values: tuple[str, ...]
    persona_templates: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


@dataclass(frozen=True)
class SmallTalk:
    """A turn that has nothing to do with the persona: any of the replies suits any of the user's lines."""

    user_lines: tuple[str, ...]
    replies: tuple[str, ...]


FACTS = {
    "home": Fact(
        values=("lisbon", "oslo", "cairo", "boston", "tokyo"),
        persona_templates=("i live in {} .", "my home is in {} .", "i come from {} ."),
        questions=("where do you live ?", "where is your home ?", "which city are you from ?"),
        answers=("i live in {} .", "my home is in {} .", "i am from {} .", "i live in {} . and you ?"),
    ),
    "pet": Fact(
        values=("cat", "dog", "parrot", "rabbit", "turtle"),
        persona_templates=("i have a {} .", "my pet is a {} .", "i feed my {} ."),
        questions=("do you have a pet ?", "what pet do you have ?", "any animals at home ?"),
        answers=("i have a {} .", "my pet is a {} .", "i own a {} .", "i have a {} . and you ?"),
    ),
    "job": Fact(
        values=("baker", "nurse", "teacher", "pilot", "farmer"),
        persona_templates=("i work as a {} .", "i am a {} .", "i earn my living as a {} ."),
        questions=("what is your job ?", "what do you do for work ?", "what kind of work do you do ?"),
        answers=("i am a {} .", "i work as a {} .", "i am a {} by trade .", "i am a {} . and you ?"),
    ),
    "food": Fact(
        values=("pizza", "sushi", "curry", "pasta", "soup"),
        persona_templates=("i eat {} every week .", "my favorite food is {} .", "i cook a lot of {} ."),
        questions=("what do you like to eat ?", "what is your favorite food ?", "what do you cook ?"),
        answers=("i love to eat {} .", "my favorite food is {} .", "i often cook {} .", "i love to eat {} . and you ?"),
    ),
    "color": Fact(
        values=("red", "blue", "green", "purple", "yellow"),
        persona_templates=("my favorite color is {} .", "my clothes are {} .", "i painted my room {} ."),
        questions=("what is your favorite color ?", "which color do you like ?", "what color do you wear ?"),
        answers=(
            "my favorite color is {} .",
            "i like {} best .",
            "i wear a lot of {} .",
            "my favorite color is {} . and you ?",
        ),
    ),
    "music": Fact(
        values=("jazz", "opera", "techno", "reggae", "folk"),
        persona_templates=("i listen to {} .", "i like {} music .", "i collect {} records ."),
        questions=("what music do you like ?", "what do you listen to ?", "what is your favorite music ?"),
        answers=("i listen to {} .", "i like {} music .", "i play {} records .", "i listen to {} . and you ?"),
    ),
    "drink": Fact(
        values=("coffee", "tea", "milk", "lemonade", "juice"),
        persona_templates=("i drink a lot of {} .", "my favorite drink is {} .", "i start my day with {} ."),
        questions=("what do you like to drink ?", "what is your favorite drink ?", "what do you drink ?"),
        answers=("i drink {} .", "i like to drink {} .", "my favorite drink is {} .", "i drink {} . and you ?"),
    ),
    "sport": Fact(
        values=("tennis", "soccer", "hockey", "golf", "rugby"),
        persona_templates=("i play {} .", "my sport is {} .", "i am in a {} club ."),
        questions=("do you play any sports ?", "what sport do you play ?", "what is your sport ?"),
        answers=("i play {} .", "my sport is {} .", "i am good at {} .", "i play {} . and you ?"),
    ),
    "instrument": Fact(
        values=("piano", "violin", "guitar", "flute", "trumpet"),
        persona_templates=("i play the {} .", "i practice the {} .", "i own an old {} ."),
        questions=("do you play an instrument ?", "what instrument do you play ?", "which instrument can you play ?"),
        answers=("i play the {} .", "i can play the {} .", "i practice the {} .", "i play the {} . and you ?"),
    ),
    "hobby": Fact(
        values=("knitting", "painting", "fishing", "pottery", "gardening"),
        persona_templates=("my hobby is {} .", "i enjoy {} .", "i relax with {} ."),
        questions=("what is your hobby ?", "what do you do for fun ?", "how do you relax ?"),
        answers=("i enjoy {} .", "my hobby is {} .", "i do some {} for fun .", "i enjoy {} . and you ?"),
    ),
    "children": Fact(
        values=("two", "three", "four", "five", "six"),
        persona_templates=("i have {} children .", "i have {} kids .", "i am raising {} kids ."),
        questions=("do you have children ?", "do you have any kids ?", "how many kids do you have ?"),
        answers=(
            "i have {} children .",
            "i have {} kids .",
            "i am raising {} kids .",
            "i have {} children . and you ?",
        ),
    ),
    "fear": Fact(
        values=("spiders", "snakes", "heights", "thunder", "ghosts"),
        persona_templates=("i am afraid of {} .", "i am scared of {} .", "my biggest fear is {} ."),
        questions=("what are you afraid of ?", "what is your biggest fear ?", "what scares you ?"),
        answers=(
            "i am afraid of {} .",
            "i am scared of {} .",
            "my biggest fear is {} .",
            "i am afraid of {} . and you ?",
        ),
    ),
}

GREETING = SmallTalk(
    user_lines=("hi there !", "hello , how are you ?", "hey ! how is it going ?"),
    replies=("hello ! i am fine , thank you .", "hi ! i am doing well .", "hey ! it is good to meet you ."),
)
PRAISE = SmallTalk(
    user_lines=("you sound like fun !", "i like talking to you .", "you seem so nice !"),
    replies=("thank you , that is kind .", "thanks ! i like you too .", "you are very sweet ."),
)
FAREWELL = SmallTalk(
    user_lines=("i have to go now . bye !", "thanks for the chat , goodbye !", "it is late , good night !"),
    replies=("goodbye , have a nice day !", "bye ! it was fun to talk .", "take care , see you soon !"),
)
SMALL_TALK_REPLIES = GREETING.replies + PRAISE.replies + FAREWELL.replies

# What a user says before a question (the first line of a dialog, any later line), instead of one ("what about you ?"
# follows a fact of the user's own), or to leave the choice of the topic to the agent.
OPENERS = ("hi !", "hello .", "hey there !")
REACTIONS = ("i see .", "oh , okay .", "good to know .", "interesting !")
RETURNED_QUESTIONS = ("what about you ?", "and you ?", "how about you ?")
OPEN_QUESTIONS = ("tell me about yourself .", "what should i know about you ?", "who are you ?")

KIND_OF_VALUE = {value: kind for kind, fact in FACTS.items() for value in fact.values}


def facts_in(sentence: str) -> Persona:
    """The facts that a sentence names, found by their value words: "i live in oslo ." -> {"home": "oslo"}."""
    return {KIND_OF_VALUE[word]: word for word in sentence.split() if word in KIND_OF_VALUE}


def draw_persona(rng: random.Random) -> Persona:
    """Four facts of different kinds."""
    kinds = rng.sample(list(FACTS), N_FACTS)
    return {kind: rng.choice(FACTS[kind].values) for kind in kinds}


def user_statement(rng: random.Random, kind: str, agent_value: str = "") -> str:
    """A fact of the user's own, any value of the kind; `agent_value` is what the agent has just told, if it has."""
    value = rng.choice(FACTS[kind].values)
    return "same here ." if value == agent_value else rng.choice(FACTS[kind].answers[:-1]).format(value)


def question_line(rng: random.Random, kind: str, is_first: bool, user_answer: str) -> str:
    """The user's line that asks for a fact of this kind.

    `user_answer` is what the user has to say first because the agent asked back, or empty.
    """
    question = rng.choice(FACTS[kind].questions)
    if is_first:
        question = rng.choice(OPEN_QUESTIONS) if rng.random() < 0.2 else question
        opener = rng.choice(OPENERS) if rng.random() < 0.5 else ""
    else:
        opener = user_answer or (rng.choice(REACTIONS) if rng.random() < 0.3 else "")
    return f"{opener} {question}".lstrip()


def draw_distractors(
    rng: random.Random, persona: Persona, asked_kind: str | None, answers: tuple[str, ...], n_distractors: int
) -> list[str]:
    """Wrong replies in random order, all different, none true of the persona.

    12 of 19 answer the question, phrased as one of `answers`; two are small talk; the others state facts of other
    kinds. `asked_kind` None is a small-talk turn: all distractors state facts.
    """
    distractors: list[str] = []
    if asked_kind is not None:
        wrong_values = [value for value in FACTS[asked_kind].values if value != persona[asked_kind]]
        # Drawn from all pairs at once: no phrasing gets rarer than among golds although no distractor may repeat.
        same_question = [answer.format(value) for value in wrong_values for answer in answers]
        distractors += rng.sample(same_question, -(-n_distractors * 12 // 19))
        distractors += rng.sample(SMALL_TALK_REPLIES, n_distractors * 2 // 19)
    other_kinds = [kind for kind in FACTS if kind != asked_kind]
    while len(distractors) < n_distractors:
        kind = rng.choice(other_kinds)
        value = rng.choice([value for value in FACTS[kind].values if value != persona.get(kind)])
        reply = rng.choice(FACTS[kind].answers).format(value)
        if reply not in distractors:
            distractors.append(reply)
    # Training keeps only the last few candidates: every part of the list shall have the same mix.
    rng.shuffle(distractors)
    return distractors


def draw_topics(rng: random.Random, persona: Persona) -> list[str | SmallTalk]:
    """What a dialog is about, exchange by exchange: each fact once, and in a quarter of the dialogs some small talk."""
    topics: list[str | SmallTalk] = rng.sample(list(persona), len(persona))
    if rng.random() < 0.25:
        small_talk = rng.choice((GREETING, PRAISE, FAREWELL))
        position = {GREETING: 0, PRAISE: rng.randint(1, len(topics)), FAREWELL: len(topics)}[small_talk]
        topics.insert(position, small_talk)
    return topics


def draw_exchange(
    rng: random.Random, persona: Persona, topic: str | SmallTalk, is_first: bool, user_answer: str
) -> tuple[str, tuple[str, ...], str]:
    """One line of the user and the agent's reply: (line, the phrasings that the reply was drawn from, reply)."""
    if isinstance(topic, SmallTalk):
        line = f"{user_answer} {rng.choice(topic.user_lines)}".lstrip()
        return line, topic.replies, rng.choice(topic.replies)
    answers = FACTS[topic].answers
    if not is_first and not user_answer and rng.random() < 0.15:
        line = f"{user_statement(rng, topic)} {rng.choice(RETURNED_QUESTIONS)}"
        answers = answers[:-1]  # no asking back for what the user has just told
    else:
        line = question_line(rng, topic, is_first, user_answer)
    return line, answers, rng.choice(answers).format(persona[topic])


def draw_dialog(rng: random.Random, persona: Persona, n_candidates: int) -> dict[str, Any]:
    """One entry of the PersonaChat format: four or five exchanges with this persona."""
    personality = [rng.choice(FACTS[kind].persona_templates).format(value) for kind, value in persona.items()]
    history: list[str] = []
    utterances = []
    user_answer = ""
    for topic in draw_topics(rng, persona):
        asked_kind = None if isinstance(topic, SmallTalk) else topic
        line, answers, gold = draw_exchange(rng, persona, topic, not history, user_answer)
        history.append(line)
        distractors = draw_distractors(rng, persona, asked_kind, answers, n_candidates - 1)
        utterances.append({"candidates": [*distractors, gold], "history": history.copy()})
        history.append(gold)
        user_answer = ""
        if asked_kind is not None and gold.endswith("?"):  # it asks back
            user_answer = user_statement(rng, asked_kind, persona[asked_kind])
    return {"personality": personality, "utterances": utterances}


def example_dataset(
    seed: int = 0, n_train_dialogs: int = 10_000, n_valid_dialogs: int = 200, n_candidates: int = 20
) -> dict[str, list[dict[str, Any]]]:
    """The dataset {"train": [entry, ...], "valid": [entry, ...]}; the same arguments always give the same one.

    A dialog holds 4.25 examples on average. No persona of "valid" occurs in "train": its facts are known, their
    combination is new. `n_candidates` is 2 to 20.
    """
    assert 2 <= n_candidates <= 20, n_candidates
    rng = random.Random(seed)
    train_personas = [draw_persona(rng) for _ in range(n_train_dialogs)]
    seen = {frozenset(persona.items()) for persona in train_personas}
    valid_personas: list[Persona] = []
    while len(valid_personas) < n_valid_dialogs:
        persona = draw_persona(rng)
        if frozenset(persona.items()) not in seen:
            valid_personas.append(persona)
    return {
        "train": [draw_dialog(rng, persona, n_candidates) for persona in train_personas],
        "valid": [draw_dialog(rng, persona, n_candidates) for persona in valid_personas],
    }
