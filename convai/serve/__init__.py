"""A dialog agent served over HTTP: an API as OpenAI's clients expect it, and a web page.

    schemas.py     what requests and answers hold, and what is refused in them
    errors.py      errors in OpenAI's form
    messages.py    chat messages to persona and turns
    jobs.py        one request's work: what is asked for, and the events it leads to
    contexts.py    persona and turns to the model's input, as the chat makes it
    replies.py     a reply as it grows: text that is settled, what ends it
    worker.py      the thread that owns the model: requests in, events out, in batches
    chat.py        the answers to chat completions, whole or as server-sent events
    app.py         the routes
    access.py      who may ask: hosts, keys, headers, limits of what is sent
    metrics.py     what Prometheus reads
    dialog_log.py  --log_dialogs
    server.py      the process: socket, signals, slow senders
    page/          the web page

Asynchronous code (app.py, chat.py) and the model's thread meet in jobs.py alone.
"""
