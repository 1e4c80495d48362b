"""The image's healthcheck: whether the server in this container answers. Where none was started, all is well.

python3 -m convai.serve.health
"""

import sys
import urllib.error
import urllib.request
from pathlib import Path

from convai.options import ServeOptions, serve_parser

PATIENCE = 5.0  # seconds


def options_of_server(processes: Path = Path("/proc")) -> ServeOptions | None:
    """Return the options that a running serve.py was started with; None where there is none."""
    for file in processes.glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended meanwhile
            continue
        # python3 [-u ...] serve.py [its options]
        script = next((number for number, word in enumerate(words[1:], start=1) if word[:1] != "-"), 0)
        if Path(words[script]).name == "serve.py":
            options = serve_parser().parse_known_args([word for word in words[script + 1 :] if word])[0]
            if options.port:  # 0 is any, which nobody outside knows
                return options
    return None


def is_well(options: ServeOptions) -> bool:
    """Whether a server with these options answers that it can reply."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(options.host, options.host)
    url = f"http://[{host}]:{options.port}/health" if ":" in host else f"http://{host}:{options.port}/health"
    try:
        with urllib.request.urlopen(url, timeout=PATIENCE):
            return True
    except (urllib.error.URLError, OSError) as error:
        print(f"{url}: {error}", file=sys.stderr)
        return False


def main() -> None:
    options = options_of_server()
    sys.exit(0 if options is None or is_well(options) else 1)


if __name__ == "__main__":
    main()
