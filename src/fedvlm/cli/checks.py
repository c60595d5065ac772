"""Verbs that check: reference outputs, the installation, speed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fedvlm.cli.answers import told
from fedvlm.cli.app import AsJson, app, print_aside, print_json, print_tables, print_text
from fedvlm.errors import FedvlmError


@app.command(epilog=told("verify"))
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Reference outputs.")],
    path: Annotated[
        str, typer.Option(help="Way through the code: alone, together, stored, released, or all of them.")
    ] = "alone",
    device: Annotated[str, typer.Option(help="As compute.device.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Recompute a directory of reference outputs and compare; exit code 1 if any tensor differs too much.

    alone: every client by itself. together: clients in one batched computation. stored: with activations that come
    back from disk. released: the released procedure, which `fedvlm bench` compares with.

    What differs is computed again with noise at the level of rounding. ILL-CONDITIONED: a unit stands on the edge of
    its ReLU, and with some noise everything agrees; it passes. FAIL: with no noise everything agrees.
    """
    from fedvlm.checks import verify as reference
    from fedvlm.checks.agreement import Group, as_json_lines, as_rich
    from fedvlm.checks.bench.released import ReleasedPath
    from fedvlm.training import device as devices

    paths = reference.PATHS | {"released": ReleasedPath()}
    if path != "all" and path not in paths:
        raise FedvlmError(f"--path '{path}' is not a way through the code; known: {', '.join(paths)}, all")
    place = devices.choose_device(devices.ComputeSection(device=device))
    devices.configure_process(place)
    failed = 0
    told: dict[str, list[Group]] = {}
    for name in paths if path == "all" else [path]:
        groups = told[name] = reference.verify(folder, paths[name], place)
        bad, edges = (sum(g.result == result for g in groups) for result in ("FAIL", "ILL-CONDITIONED"))
        failed += bad
        if as_json:
            continue
        print_tables(as_rich(groups, name))
        print_text(f"{name}: {sum(g.tensors for g in groups)} tensors in {len(groups)} groups, {bad} groups failed"
            + (f", {edges} ill-conditioned" if edges else ""))  # fmt: skip
    if as_json:
        print_json({"paths": {name: as_json_lines(groups) for name, groups in told.items()}, "failed_groups": failed})
    raise typer.Exit(1 if failed else 0)


@app.command(epilog=told("doctor"))
def doctor(
    out: Annotated[Path, typer.Option(help="Run folder to test.")] = Path("runs"), as_json: AsJson = False
) -> None:
    """Versions, devices, threads, weights; what is missing and the command that gets it."""
    from fedvlm.checks.doctor import examine

    findings = examine(out)
    if as_json:
        print_json({"findings": [asdict(one) for one in findings]})
    for f in [] if as_json else findings:
        print_text(f"{'ok  ' if f.good else 'FIX '} {f.what:24} {f.found}")
        if f.advice:
            print_text(f"     {'':24} -> {f.advice}")
    raise typer.Exit(0 if all(f.good for f in findings) else 1)


@app.command(epilog=told("bench"))
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PROTOCOL]...", help="Default: all.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that holds caltech-101 in CoOp's layout.")] = Path("data"),
    models: Annotated[Path, typer.Option(help="Where random CLIPs are, or will be made.")] = Path("models"),
    tokenizer: Annotated[str, typer.Option(help="Model whose tokenizer random CLIPs take.")] = "embedded",
    out: Annotated[Path, typer.Option(help="JSON to write; the table goes beside it.")] = Path("bench.json"),
    steps: Annotated[int, typer.Option(help="Training steps to time.")] = 2,
    images: Annotated[int, typer.Option(help="Test images to time.")] = 100,
    list_: Annotated[bool, typer.Option("--list", help="Only list the protocols.")] = False,
    as_json: AsJson = False,
) -> None:
    """Time the released procedure and this package side by side, and compare their results."""
    from fedvlm import durable
    from fedvlm.checks.bench import protocols, report
    from fedvlm.checks.bench.side import Sizes

    chosen = names or list(protocols.PROTOCOLS)
    say = print_aside if as_json else print_text
    if list_:
        found = [protocols.find_protocol(name) for name in chosen]
        if as_json:
            print_json({"protocols": [{"protocol": one.name, "title": one.title} for one in found]})
        for protocol in [] if as_json else found:
            print_text(f"{protocol.name:20} {protocol.title}")
        return
    rows: list[report.BenchRow] = []
    for row in report.bench(chosen, data, models, tokenizer, Sizes(steps, images), say):
        rows.append(row)
        say(f"{row.protocol}: a warm round {row.ratios['warm']:.1f} times faster")
        durable.write_json(out, report.as_json(rows))
        durable.write_text(out.with_suffix(".md"), report.as_markdown(rows))
    if as_json:
        print_json(report.as_json(rows))
        return
    print_text(report.as_markdown(rows))
    print_text(f"columns without a name: this package; before them the released procedure. Written: {out}")


@app.command("random-clip")
def random_clip(
    architecture: Annotated[str, typer.Argument(help="ViT-B/32, ViT-B/16, ViT-L/14 or RN50.")],
    folder: Annotated[Path, typer.Argument(help="Directory to write.")],
    tokenizer: Annotated[str, typer.Option(help="Model directory or hub id whose tokenizer to take.")] = "embedded",
    seed: Annotated[int, typer.Option(help="Seed of the weights.")] = 0,
) -> None:
    """Write a CLIP of a published size with random weights, to measure time and memory without downloading one."""
    from fedvlm.clip.make import make

    clip = make(architecture, folder, tokenizer=tokenizer, seed=seed)
    numbers = sum(parameter.numel() for parameter in clip.parameters())
    print_text(f"{folder}: {architecture}, {numbers:,} random weights")
