"""Serve a fine-tuned dialog agent: a web page and an API as OpenAI's clients know it.

    python serve.py                                   the released model, downloaded once
    python serve.py --model_checkpoint runs/my_run    your own

Then open http://127.0.0.1:8000/. docs/serve.md has the API, keys, limits, and proxies.
"""

import logging
import sys
from pathlib import Path

from convai.errors import report_user_errors
from convai.io.pretrained import locate_finetuned
from convai.options import ServeOptions, serve_parser


@report_user_errors
def main() -> None:
    options = serve_parser().parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    for chatty in ("uvicorn.error", "asyncio"):  # not a line for each broken request, or client that goes away
        logging.getLogger(chatty).setLevel(logging.ERROR)
    from convai.serve.access import read_keys, warning_of

    keys = read_keys(options.api_key_file)
    folder = locate_finetuned(options.model, options.model_checkpoint)
    from convai.serve.server import open_socket, serve, url_of

    listener = open_socket(options.host, options.port)
    if warning := warning_of(options.host, keys):
        say(f"warning: {warning}")
    say(f"loading {folder} ...")
    # These imports take seconds, so they come after all that can be refused without them.
    from convai.data.messages import persona_of
    from convai.dialog.loading import load_agent
    from convai.serve.app import create_app
    from convai.serve.service import Service

    agent = load_agent(folder, options)
    persona_of("One. Two.")  # imports spaCy, which the first persona should not have to wait for
    if options.num_beams > 1:
        import convai.dialog.beam_search  # noqa: F401 # nor for this, which takes seconds, too
    name = Path(options.model_checkpoint or options.model).name or folder.resolve().name
    service = Service(agent, options, name, load_personas(options, folder, agent.tokenizer))
    app = create_app(service, keys)
    say(f"serving {name} at {url_of(listener)} (Ctrl-C ends it)")
    serve(app, listener, service.worker, options)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def load_personas(options: ServeOptions, folder: Path, tokenizer) -> list[list[str]]:
    """Return personas for the page: of the data set given, else stored with the checkpoint, else of the example set."""
    from convai.dialog.personas import personas_of, stored_personas

    if not options.dataset_path:
        return stored_personas(folder)
    from utils import get_dataset

    data = get_dataset(tokenizer, options.dataset_path, options.dataset_cache, False, options.reading())
    return personas_of(data["train"], tokenizer)


if __name__ == "__main__":
    main()
