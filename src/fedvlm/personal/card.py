"""The card of a personal model: Markdown with the header that model hubs read."""

from __future__ import annotations

import json
from pathlib import Path

from fedvlm.errors import listed
from fedvlm.personal.model import Facts, PersonalModel
from fedvlm.tensors import nbytes

SHOWN = {"local": "Local: own classes", "base": "Base: all trained classes", "novel": "Novel: classes nobody trained"}
USAGE = """\
import fedvlm

model = fedvlm.load("{folder}")
for found in model.predict("photograph.jpg"):
    print(found.label, found.probabilities[0])"""


def text(model: PersonalModel, size: int) -> str:
    """The card; `size`: bytes of the weights."""
    facts = model.facts
    parts = [_header(facts), _title(facts, size), _usage(), _scores(facts), _confidence(facts), _private(model),
             _made(facts)]  # fmt: skip
    return "\n".join(parts)


def _header(facts: Facts) -> str:
    """YAML that hubs read; a JSON string is a YAML string."""
    tags = ["fedvlm", "clip", "federated-learning", "personalised", facts.method]
    base = [f"base_model: {json.dumps(facts.base.name)}"] if facts.base.name.count("/") == 1 else []
    lines = ["library_name: fedvlm", "pipeline_tag: zero-shot-image-classification", *base,
             "tags:", *(f"- {json.dumps(tag)}" for tag in tags)]  # fmt: skip
    return "\n".join(["---", *lines, "---", ""])


def _title(facts: Facts, size: int) -> str:
    unfinished = (
        f"**Unfinished: {facts.rounds} of {facts.all_rounds} rounds.**\n\n" if facts.rounds < facts.all_rounds else ""
    )
    classes = f"{len(facts.classes)} classes: {_names(facts.classes)}."
    own = ", ".join(f"{_plain(name)} ({count})" for name, count in facts.own.items())
    return (
        f"# {facts.title}, client {_plain(facts.client)}\n\n"
        f"A personal model of one client of the federation *{_plain(facts.experiment_name)}*: what it has trained "
        f"({size:,} bytes) for a frozen CLIP, `{_base(facts)}`.\n\n{unfinished}"
        f"- {classes}\n- Its own training images: {sum(facts.own.values())} in {len(facts.own)} classes: {own}.\n"
        f"- Other classes can be asked for by name, as of any CLIP.\n"
    )


def _usage() -> str:
    return (
        "## Use\n\n```console\n$ fedvlm predict . photograph.jpg\n```\n\n```python\n"
        + USAGE.format(folder=".")
        + "\n```\n"
    )


def _scores(facts: Facts) -> str:
    names = [name for name in SHOWN if name in facts.metrics]
    if not names:
        return ""
    both = bool(facts.zero_shot)
    heads = ["accuracy in %", "this model", *(["the CLIP as it was"] if both else [])]
    lines = ["## Measured\n", "| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for name in names:
        cells = [SHOWN[name], f"{facts.metrics[name] * 100:.1f}"]
        if both:
            cells.append(f"{facts.zero_shot[name] * 100:.1f}" if name in facts.zero_shot else "-")
        lines.append("| " + " | ".join(cells) + " |")
    novel = f" Novel classes: {_names(facts.novel)}." if facts.novel else ""
    what = "On test images. Local: those of this client. Base and Novel: the test images that clients have in common."
    return "\n".join([*lines, "", f"{what}{novel}", ""])


def _confidence(facts: Facts) -> str:
    found = facts.calibrated
    if found.none_below is None or found.kept is None:
        return f"## How sure it is\n\nNot calibrated: {found.why_not or 'it was not asked for'}.\n"
    seen = "What is shared has seen these images, so the model may still be too sure"
    how = (
        f"each by a model trained without it ({found.folds} folds). {seen}"
        if found.held_out else "which it was trained on: all that is trained is shared, so it is probably too sure"
    )  # fmt: skip
    return (
        f"## How sure it is\n\nLogits are divided by {found.temperature:.3g}, chosen on predictions of the client's "
        f"own {found.images} training images, {how}. Their negative log-likelihood went from {found.before:.3f} to "
        f"{found.after:.3f} nats. `none of these` stands for a highest probability below {found.none_below:.2f}, which "
        f"{found.kept * 100:.0f} % of them reach. Images of other classes than the client's own were not looked at.\n"
    )


def _private(model: PersonalModel) -> str:
    facts = model.facts
    lines = ["## What travelled\n"]
    if facts.shared and facts.local_rounds:
        lines.append(f"- Shared with the server, then trained further here in {facts.local_rounds} local rounds: "
                     f"{_tensors(facts.shared)}. These last values never left.")  # fmt: skip
    else:
        lines.append(f"- Shared with the server: {_tensors(facts.shared) or 'nothing'}.")
    if facts.private:
        lines.append(
            f"- Never left this client before: {_tensors(facts.private)}. Whoever has this folder has them now."
        )
    if facts.received:
        size = f"{nbytes(model.received):,} bytes"
        lines.append(f"- Received from others and kept here: {_tensors(facts.received)} ({size}). Before you hand the "
                     "folder on, ask whom they belong to.")  # fmt: skip
    if model.support is not None:
        what = "Features and labels" if model.support[0].shape[-1] else "The labels"
        lines.append(f"- **{what} of the client's {facts.support} training images are in here**: the method looks at "
                     "them for every prediction.")  # fmt: skip
    if facts.base.name.startswith("/"):
        lines.append("- `model.json` tells the folder of the CLIP on this machine.")
    return "\n".join([*lines, "- No photograph is in it.", ""])


def _made(facts: Facts) -> str:
    settings = {**facts.changed, **{f"{facts.label}.{key}": value for key, value in facts.settings.items()}}
    rows = [f"| {_plain(key)} | {_plain(json.dumps(value, ensure_ascii=False))} |" for key, value in settings.items()]
    revision = f" at {facts.base.revision}" if facts.base.revision else ""
    how = [
        f"fedvlm {facts.package}, method `{facts.method}`, {facts.rounds} rounds, {facts.trainings} trainings of this "
        f"client, seed {facts.seed}, state `{facts.state}`, precision {facts.dtype}.",
        f"Experiment `{facts.experiment}`.",
        f"CLIP `{_base(facts)}`{revision}, SHA-256 of its weights `{facts.base.weights}`, transform "
        f"`{facts.base.transform}`, template `{facts.template}`.",
    ]
    table = ["Settings of the method, and others that are not the defaults:", "", "| setting | value |", "|---|---|"]
    return "\n".join(["## How it was made\n", "\n\n".join(how), "", *table, *rows, ""])


def _base(facts: Facts) -> str:
    """The CLIP's name, without the folders above its own."""
    return Path(facts.base.name).name if facts.base.name.startswith("/") else facts.base.name


def _tensors(shapes: dict[str, list[int]]) -> str:
    return listed((f"`{name}` {shape}" for name, shape in shapes.items()), 12)


def _names(names: list[str]) -> str:
    return listed((_plain(name) for name in names), 40)


def _plain(text: str) -> str:
    """Text of others without anything that Markdown or HTML would read."""
    kept = "".join(letter if letter.isprintable() else " " for letter in text)
    for letter in "\\`*_[]<>|#":
        kept = kept.replace(letter, "\\" + letter)
    return kept
