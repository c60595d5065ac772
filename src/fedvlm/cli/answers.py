"""What verbs answer with `--json`: the keys of each answer, and what stands under them.

One convention: a single document on standard output (`predict`: a line for each image, as it is predicted); contract,
progress and warnings on standard error; mistakes as without `--json`, one sentence on standard error and exit code 2.
Accuracies are in 0..1, losses in nats, and names of other quantities end with their unit (`_s`, `_bytes`). A number
that does not exist is null. Keys stay; new ones may come.
"""

from __future__ import annotations

RESULTS = {
    "name": "of the experiment", "digest": "of its settings", "folder": "the run folder", "seeds": "all of them",
    "rows": "of each method and state: metrics with mean and std over seeds, up_bytes and down_bytes of a client and "
            "round, train_s; as table.json", "newcomers": "the same of clients that joined after the last round",
    "failed": "why, by method and seed",
}  # fmt: skip
NOTES = "how to read it, in sentences"
SHAPES: dict[str, dict[str, str]] = {
    "init": {
        "found": "in a sentence", "images": "their number", "images_by_class": "", "owners": "client, domain or null",
        "images_by_owner": "", "splits": "", "oddities": "in sentences", "settings": "of [data]",
        "file": "the experiment's",
    },
    "check": {
        "name": "", "digest": "", "rounds": "", "seeds": "", "methods": "the contract of each: numbers trained, "
        "private and shared, up_bytes, down_bytes (least, most), tensors that leave; as contract.json",
        "notes": "on the data",
    },
    "run": RESULTS,
    "watch": {
        "name": "", "points": "of each method and seed: state, round, rounds, loss, metrics, seconds", "running": "",
        "finished": "", "left_s": "at the pace so far",
    },
    "partition": {
        "digest": "", "clients": "each with domain, training_images, local_test_images, classes, "
        "training_images_by_class", "notes": "on the data", "picture": "its file",
    },
    "compare": {
        "name": "", "seeds": "", "against": "the reference", "target": "the accuracy to be reached", "tuned": "whether "
        "there are validation images", "rows": "of each method: values by seed, trade-off curve, rounds and "
        "total_bytes until the target, differences with interval and p", "notes": NOTES, "failed": "by method",
        "least_p": "with these seeds", "folder": "",
    },
    "sweep": {
        "name": "", "key": "the setting", "comparisons": "one of each value, as compare's", "corrected_over_values":
        "p by metric", "failed": "by value", "folder": "",
    },
    "audit": {
        "experiment": "", "digest": "", "reading": NOTES, "rows": "of each method and fault: cells by metric with "
        "value, difference and p, train_s", "folder": "; without an experiment: faults",
    },
    "reproduce": {
        "table": "", "heading": "", "protocol": "", "unit": "of paper and ours: % or images", "weights": "", "changed":
        "settings that are not the table's", "complete": "", "cells": "each with paper, ours, difference, reasons",
        "missing": "in sentences", "reasons": "in sentences", "runs": "each with its command",
        "folder": "null with --dry-run; without a table: tables, notes",
    },
    "federation run": RESULTS,
    "site check": {
        "experiment": "", "seed": "", "digest": "", "approved": "", "classes": "each with training_images, "
        "validation_images, test_images", "missing": "classes without an image here", "notes": "", "leaving": "of each "
        "method: tensors with shape and bytes, rounds, total_bytes, refused", "metrics": "that may leave", "allowed":
        "whether the policy allows all", "site": "its name",
    },
    "site status": {
        "running": "", "lines": "of each method and seed: messages, names of tensors, last_round, bytes", "refusals":
        "their number", "last_refusals": "",
    },
    "methods": {"methods": "each with title, shared name patterns, paper; of one method: method, about, settings"},
    "presets": {"presets": "each with what its file says of it"},
    "doctor": {"findings": "each with what, found, good, advice"},
    "cache": {
        "folder": "", "bytes": "of all tables", "tables": "each with facts, files, bytes, last_used",
        "sound_images_bytes": "", "deleted_bytes": "",
    },
    "verify": {"paths": "groups of tensors by way through the code, each with its result", "failed_groups": ""},
    "bench": {
        "machine": "", "rows": "of each protocol: timings of both sides, ratios", "quickstart_ratio":
        "; with --list: protocols",
    },
}  # fmt: skip
"""Keys by verb, and what is not clear from the key. `predict` is told in its help."""


def told(verb: str) -> str:
    """The end of a verb's help."""
    words = [f"{key} ({meaning})" if meaning and not meaning.startswith(";") else key + meaning
             for key, meaning in SHAPES[verb].items()]  # fmt: skip
    return f"With --json: {', '.join(words)}. Accuracies in 0..1."
