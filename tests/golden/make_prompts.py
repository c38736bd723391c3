"""Makes prompts/long/*.txt: the prompts of about 2K, 4K and 7K tokens.

usage: make_prompts.py FOLDER      (on Debian 12 with perl-modules; Python alone is enough)

Texts come from what Debian installs (licences, Python's library, Perl's manuals) or are made here
from a seed. They differ between Debian releases, so the files are kept and expectations name the
SHA-256 of every prompt; this script says where each came from and how to make more.
"""
import pathlib
import random
import sys

LICENSES = pathlib.Path("/usr/share/common-licenses")
PYTHON = pathlib.Path("/usr/lib/python3.11")
PERL = pathlib.Path("/usr/share/perl/5.36.0")

COLOURS = "amber azure copper crimson ebony golden indigo ivory olive pearl russet silver".split()
NOUNS = ("anchor badger comet drum engine falcon garden heron island jacket kettle lantern meadow "
         "needle orchard pebble quarry river saddle temple").split()

SENTENCES = [
    "The weather station on the hill recorded {} millimetres of rain last night.",
    "Nobody knew why the {} chairs in the hall had all been painted green.",
    "Please send the remaining {} copies to the office before Friday.",
    "La bibliothèque municipale possède plus de {} ouvrages sur la navigation à voile.",
    "À cause de la grève, seulement {} trains circuleront demain matin.",
    "Hélène a trouvé {} pièces anciennes sous le plancher de la cuisine.",
    "Die Brücke über den Fluß ist {} Meter lang und wurde vor dem Krieg gebaut.",
    "Für das Frühstück brauchen wir {} Brötchen, etwas Käse und schwarzen Kaffee.",
    "Im Schrank hängen {} Mäntel, aber keiner davon gehört mir.",
    "El tren llegó con {} minutos de retraso porque había nieve en la vía.",
    "¿Cuántos años tiene tu abuela? Creo que cumple {} en octubre.",
    "Compramos {} kilos de naranjas en el mercado de la plaza.",
    "Il professore ha corretto {} compiti prima di andare a dormire.",
    "A casa amarela fica a {} quilómetros da estação, depois da ponte.",
    "W ogrodzie rośnie {} drzew, a pod każdym stoi mała ławka.",
    "В этом доме {} окон, и в каждом из них горит свет.",
    "Мой брат прочитал {} страниц за один вечер и заснул на диване.",
    "Поезд отправляется через {} минут с третьего пути.",
    "Το πλοίο φεύγει σε {} λεπτά από το παλιό λιμάνι.",
    "Köprünün yanında {} küçük dükkân ve bir çay bahçesi var.",
    "图书馆里有{}本关于历史的书，可是没有人借。",
    "昨天我们在山上看见了{}只白色的鸟。",
    "这条河有{}公里长，流过三个城市。",
    "駅の前に{}台の自転車が並んでいます。",
    "祖母は毎年{}個の柿を干して、冬に食べます。",
    "우리 동네에는 나무가 {}그루 있고 고양이도 많다.",
    "في المدينة القديمة {} بابًا من الخشب وسوق كبير.",
    "בספרייה יש {} ספרים ישנים וכיסא אחד ליד החלון.",
    "इस गाँव में {} घर हैं और एक पुराना कुआँ है।",
    "Trên bàn có {} quyển sách và một tách trà nóng.",
]


def lines_of(path, first=0, characters=None):
    text = path.read_text(encoding="utf-8")[first:]
    if characters is None or len(text) <= characters:
        return text
    return text[:text.rfind("\n", 0, characters) + 1]


def keys(rng, entries, asked):
    """A list of keys and values, then some of its entries again in another order."""
    names = [f"{c}-{n}-{k}" for c in COLOURS for n in NOUNS for k in range(10, 100)]
    pairs = [(name, rng.randrange(10000, 100000)) for name in rng.sample(names, entries)]
    again = rng.sample(pairs, asked)
    text = "The register of lockers and their codes.\n\n"
    text += "".join(f"locker {name} has code {code}\n" for name, code in pairs)
    text += "\nThe following lockers were asked for again.\n\n"
    text += "".join(f"locker {name} has code {code}\n" for name, code in again[:-1])
    return text + f"locker {again[-1][0]} has code"


def copied(text, begin, length):
    """A text, then a passage from its middle again, broken off in the middle of a line."""
    begin = text.index("\n", begin) + 1
    return text + "\n\nThe passage in question reads once more:\n\n" + \
        text[begin:text.index(" ", begin + length)]


def log(rng, lines):
    out, clock = [], 8 * 3600
    for _ in range(lines):
        clock += rng.randrange(1, 40)
        stamp = f"{clock // 3600:02d}:{clock // 60 % 60:02d}:{clock % 60:02d}"
        level = rng.choice(["INFO", "INFO", "INFO", "WARN", "DEBUG", "ERROR"])
        where = rng.choice(["net.accept", "disk.read", "cache.evict", "auth.login", "job.run"])
        what = rng.choice([f"request {rng.randrange(16**8):08x} took {rng.randrange(1, 900)} ms",
                           f"retry {rng.randrange(1, 6)} of 5 on node-{rng.randrange(1, 20)}",
                           f"user {rng.choice(NOUNS)}{rng.randrange(100)} not found",
                           f"freed {rng.randrange(1, 512)} MiB"])
        out.append(f"2021-06-14T{stamp}Z {level} {where}: {what}\n")
    return "".join(out)


def table(rng, rows):
    text = "id,colour,thing,weight_kg,price_eur,in_stock\n"
    for row in range(1, rows + 1):
        text += (f"{row},{rng.choice(COLOURS)},{rng.choice(NOUNS)},{rng.uniform(0.1, 40):.2f},"
                 f"{rng.uniform(1, 900):.2f},{rng.choice(['yes', 'no'])}\n")
    return text


def languages(rng, sentences):
    return " ".join(rng.choice(SENTENCES).format(rng.randrange(2, 3000)) for _ in range(sentences))


def chat(document, question):
    return (f"<|im_start|>user\n{document}\n\n{question}<|im_end|>\n<|im_start|>assistant\n")


def main():
    rng = random.Random(20240229)
    prompts = {
        "prose_2k": lines_of(LICENSES / "Apache-2.0", 0, 10600),
        "license_4k": lines_of(LICENSES / "MPL-2.0"),
        "manual_4k": lines_of(PERL / "Test" / "Tutorial.pod", 0, 12600),
        "code_heap_4k": lines_of(PYTHON / "heapq.py", 0, 15000),
        "code_shell_4k": lines_of(PYTHON / "shlex.py"),
        "keys_4k": keys(rng, 175, 45),
        "copy_4k": copied(lines_of(LICENSES / "LGPL-2.1", 0, 15000), 5000, 3000),
        "languages_4k": languages(rng, 120),
        "log_4k": log(rng, 108),
        "table_4k": table(rng, 160),
        "chat_4k": chat(lines_of(LICENSES / "GFDL-1.3", 0, 18500),
                        "What is a Secondary Section, according to this document?"),
        "license_7k": lines_of(LICENSES / "GPL-3"),
        "code_7k": lines_of(PYTHON / "dataclasses.py", 0, 26500),
        "keys_7k": keys(rng, 305, 85),
        "copy_7k": copied(lines_of(LICENSES / "LGPL-2.1"), 12000, 6500),
    }
    for name, text in prompts.items():
        (pathlib.Path(sys.argv[1]) / f"{name}.txt").write_bytes(text.encode("utf-8"))


main()
