"""The recorded expectations belong to the models and prompts that lie beside them."""
import hashlib
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def prompts():
    return {p.stem: p.read_bytes() for p in (HERE / "prompts").rglob("*.txt")}


def tokens_of(entry):
    return sha256(",".join(map(str, entry["tokens"])).encode())


def main():
    wrong = []

    def check(holds, what):
        if not holds:
            wrong.append(what)

    tiny = json.loads((HERE / "tiny" / "logits.json").read_text())["models"]
    check(set(tiny) == {p.name for p in (HERE / "tiny").glob("*.gguf")}, "tiny: other models")
    for name, model in tiny.items():
        check(sha256((HERE / "tiny" / name).read_bytes()) == model["sha256"], f"tiny/{name}: hash")
        for sequence in model["sequences"]:
            logits = sequence["logits"]
            check(logits.index(max(logits)) == sequence["greedy"][0], f"tiny/{name}: first token")
            check(len(sequence["margin"]) == len(sequence["greedy"]), f"tiny/{name}: margins")

    texts = prompts()
    for path in sorted(HERE.glob("greedy_*.json")):
        for name, entry in json.loads(path.read_text())["prompts"].items():
            where = f"{path.name}: {name}"
            check(sha256(texts.get(name, b"")) == entry["sha256"], f"{where}: text")
            check(len(entry["margin"]) == len(entry["greedy"]), f"{where}: margins")
            if "tokens" in entry:
                check(tokens_of(entry) == entry["tokens_sha256"], f"{where}: tokens")
                check(len(entry["tokens"]) == entry["n_tokens"], f"{where}: token count")
            else:  # the C++ test compares
                check(len(entry.get("tokens_xxh128", "")) == 32, f"{where}: no hash of tokens")
    for path in sorted(HERE.glob("logits_*.json")):
        for name, entry in json.loads(path.read_text())["prompts"].items():
            check(sha256(texts.get(name, b"")) == entry["sha256"], f"{path.name}: {name}: text")
            for at in entry["positions"]:
                falls = at["logits"] == sorted(at["logits"], reverse=True)
                check(falls and at["logits"][0] <= at["log_sum_exp"] + 1e-4,
                      f"{path.name}: {name}: {at['position']}")
    rows = json.loads((HERE / "rows" / "about.json").read_text())
    check(set(rows) == {p.name for p in (HERE / "rows").glob("*.rows")}, "rows: other files")
    for name, of in rows.items():
        recorded = json.loads((HERE / f"greedy_{name.split('_')[0]}.json").read_text())
        check(of["model_sha256"] == recorded["model_sha256"], f"rows/{name}: model")
        check(of["prompt"] in recorded["prompts"], f"rows/{name}: prompt")
        both_sides = 2 * of["heads"] * of["rows"] * of["size"] * 2
        squares = of["heads"] * of["size"] * 4
        check((HERE / "rows" / name).stat().st_size == both_sides + squares, f"rows/{name}: length")
    for name in ("nll.json", "logit_error.json"):
        models = json.loads((HERE / name).read_text())["models"]
        for model in models.values():
            entries = model.get("prompts", {}).items() if name == "nll.json" else [
                (e["prompt"], e) for e in model["positions"]]
            for prompt, entry in entries:
                check(sha256(texts.get(prompt, b"")) == entry["sha256"], f"{name}: {prompt}: text")

    for what in wrong:
        print(what, file=sys.stderr)
    return 1 if wrong else 0


sys.exit(main())
