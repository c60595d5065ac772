"""Verbs that check: reference outputs, the installation, speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvlm.cli.app import app, print_tables, print_text
from fedvlm.errors import FedvlmError


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Reference outputs.")],
    path: Annotated[
        str, typer.Option(help="Way through the code: alone, together, stored, released, or all of them.")
    ] = "alone",
    device: Annotated[str, typer.Option(help="As compute.device.")] = "cpu",
) -> None:
    """Recompute a directory of reference outputs and compare; exit code 1 if any tensor differs too much.

    alone: every client by itself. together: clients in one batched computation. stored: with activations that come
    back from disk. released: the released procedure, which `fedvlm bench` compares with.

    What differs is computed again with noise at the level of rounding. ILL-CONDITIONED: a unit stands on the edge of
    its ReLU, and with some noise everything agrees; it passes. FAIL: with no noise everything agrees.
    """
    from fedvlm.checks import verify as reference
    from fedvlm.checks.agreement import as_rich
    from fedvlm.checks.bench.released import ReleasedPath
    from fedvlm.training import device as devices

    paths = reference.PATHS | {"released": ReleasedPath()}
    if path != "all" and path not in paths:
        raise FedvlmError(f"--path '{path}' is not a way through the code; known: {', '.join(paths)}, all")
    place = devices.choose_device(devices.ComputeSection(device=device))
    devices.configure_process(place)
    failed = 0
    for name in paths if path == "all" else [path]:
        groups = reference.verify(folder, paths[name], place)
        bad, edges = (sum(g.result == result for g in groups) for result in ("FAIL", "ILL-CONDITIONED"))
        print_tables(as_rich(groups, name))
        print_text(f"{name}: {sum(g.tensors for g in groups)} tensors in {len(groups)} groups, {bad} groups failed"
            + (f", {edges} ill-conditioned" if edges else ""))  # fmt: skip
        failed += bad
    raise typer.Exit(1 if failed else 0)


@app.command()
def doctor(out: Annotated[Path, typer.Option(help="Run folder to test.")] = Path("runs")) -> None:
    """Versions, devices, threads, weights; what is missing and the command that gets it."""
    from fedvlm.checks.doctor import examine

    findings = examine(out)
    for f in findings:
        print_text(f"{'ok  ' if f.good else 'FIX '} {f.what:24} {f.found}")
        if f.advice:
            print_text(f"     {'':24} -> {f.advice}")
    raise typer.Exit(0 if all(f.good for f in findings) else 1)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(metavar="[PROTOCOL]...", help="Default: all.")] = None,
    data: Annotated[Path, typer.Option(help="Folder that holds caltech-101 in CoOp's layout.")] = Path("data"),
    models: Annotated[Path, typer.Option(help="Where random CLIPs are, or will be made.")] = Path("models"),
    tokenizer: Annotated[str, typer.Option(help="Model whose tokenizer random CLIPs take.")] = "embedded",
    out: Annotated[Path, typer.Option(help="JSON to write; the table goes beside it.")] = Path("bench.json"),
    steps: Annotated[int, typer.Option(help="Training steps to time.")] = 2,
    images: Annotated[int, typer.Option(help="Test images to time.")] = 100,
    list_: Annotated[bool, typer.Option("--list", help="Only list the protocols.")] = False,
) -> None:
    """Time the released procedure and this package side by side, and compare their results."""
    from fedvlm import durable
    from fedvlm.checks.bench import protocols, report
    from fedvlm.checks.bench.side import Sizes

    chosen = names or list(protocols.PROTOCOLS)
    if list_:
        for protocol in map(protocols.find_protocol, chosen):
            print_text(f"{protocol.name:20} {protocol.title}")
        return
    rows: list[report.BenchRow] = []
    for row in report.bench(chosen, data, models, tokenizer, Sizes(steps, images), print_text):
        rows.append(row)
        print_text(f"{row.protocol}: a warm round {row.ratios['warm']:.1f} times faster")
        durable.write_json(out, report.as_json(rows))
        durable.write_text(out.with_suffix(".md"), report.as_markdown(rows))
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
