"""One entry of the PersonaChat JSON format, written out as a pattern for your own data.

A data file is one JSON object with two lists of such entries, one entry per dialog:

    {"train": [entry, entry, ...], "valid": [entry, entry, ...]}

An entry has two keys:

`personality`
    Who the agent is: a list of short sentences. They are given to the model before the dialog, so they should hold
    what the replies are to be true to. Their order carries no meaning; an empty list means an agent without a persona.

`utterances`
    The agent's turns, oldest first: one item for every reply that the model shall learn. An item has two keys:

    `history`
        Everything said before this reply, from the first line of the dialog on: user, agent, user, ... It starts
        and ends with the user, so its length is odd. Each item repeats the history of the one before it and
        adds the agent's reply and the user's next line. (Training reads only the newest lines; see `--max_history`.)

    `candidates`
        Possible replies to the end of that history. THE LAST ONE IS THE REPLY THAT WAS GIVEN ("gold"); the others are
        distractors, wrong here but sensible elsewhere, usually replies out of other dialogs. The model learns to say
        the gold and to rank it above the distractors. The number of candidates may differ from item to item, and a
        list may hold the gold alone. Where training uses fewer than there are, it keeps the gold and those before it.

All text is plain strings. PersonaChat is lowercase with spaces around punctuation, as below; whatever style you choose,
write your data as your users will type.
"""

EXAMPLE_ENTRY = {
    "personality": [
        "i keep bees behind my house .",
        "my brother and i run a bookshop .",
        "i never learned to swim .",
    ],
    "utterances": [
        {
            # The agent's first turn: only the user has spoken.
            "history": ["hello ! how was your day ?"],
            "candidates": [
                "no , i have always lived by the sea .",  # distractor: answers something else
                "tiring . my students had an exam today .",  # distractor: fits the question, not the persona
                "busy ! half the town bought books today .",  # gold: always the last
            ],
        },
        {
            # The same dialog, two lines later: the gold of the turn before is now part of the history.
            "history": [
                "hello ! how was your day ?",
                "busy ! half the town bought books today .",
                "so you work in a shop ?",
            ],
            "candidates": [
                "i would say october , when the leaves turn .",
                "yes , it belongs to my brother and me .",  # one distractor before it is enough
            ],
        },
        {
            "history": [
                "hello ! how was your day ?",
                "busy ! half the town bought books today .",
                "so you work in a shop ?",
                "yes , it belongs to my brother and me .",
                "lovely . will you go swimming now that it is warm ?",
            ],
            "candidates": [
                "i cannot swim , so i will sit with my bees instead .",  # the gold alone
            ],
        },
    ],
}
