"""Take the pictures of the web page in docs/images: python scripts/page_pictures.py http://127.0.0.1:8000/ docs/images

The server has the demo's model, which answers to the last turn alone:

    python serve.py --model_checkpoint models/demo --max_history 0

Needs a browser (scripts/browser.sh) and, beside requirements-dev.txt, Pillow: pip install pillow.
"""

import io
import sys
from pathlib import Path
from urllib.parse import urlencode

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser import find_browser, open_browser
from page_talk import SIZES, Talk

PERSONA = ("i live in cairo .", "my pet is a parrot .", "i work as a nurse .", "i listen to jazz .")
TURNS = ("hello . where do you live ?", "do you have a pet ?", "what is your job ?", "what music do you like ?")
CANDIDATES = ("i am a nurse .", "i love jazz .", "i like rock music .", "i live in cairo .")
SCHEMES = ("light", "dark")
GAP = 20  # pixels between pictures side by side
COLORS = 128


def main() -> None:
    url, folder = sys.argv[1], Path(sys.argv[2])
    program = find_browser()
    assert program, "there is no browser; scripts/browser.sh installs one"
    folder.mkdir(parents=True, exist_ok=True)
    settings = [*(("agent", sentence) for sentence in PERSONA), ("you", "i play rugby ."), ("seed", "7")]
    with open_browser(program) as browser:
        for scheme in SCHEMES:
            context = browser.new_context(viewport=SIZES["wide"], color_scheme=scheme, device_scale_factor=2)
            talk = Talk(context.new_page())
            talk.open(f"{url}#{urlencode(settings)}")
            hold_dialog(talk)
            save(folder / f"page_1280_{scheme}.png", [shot(talk)])
            talk.page.set_viewport_size(SIZES["small"])
            parts = []
            for part in ("chat", "cast", "ranking"):
                talk.show(part)
                talk.page.locator("h1").hover()
                talk.page.wait_for_timeout(400)  # for transitions
                parts.append(shot(talk))
            save(folder / f"page_390_{scheme}.png", parts)
            context.close()


def hold_dialog(talk: Talk) -> None:
    for turn in TURNS:
        talk.say(turn)
    talk.page.fill("#candidates", "\n".join(CANDIDATES))
    talk.rank("Score")
    talk.page.locator("#say").focus()
    talk.page.wait_for_timeout(400)


def shot(talk: Talk) -> Image.Image:
    return Image.open(io.BytesIO(talk.page.screenshot())).convert("RGB")


def save(path: Path, pictures: list[Image.Image]) -> None:
    """Write pictures side by side, in few colours, as pages have."""
    width = sum(picture.width for picture in pictures) + 2 * GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, pictures[0].height), "#808080")
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + 2 * GAP
    whole.quantize(COLORS, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
