from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvlm.clip import FEATURE, FrozenCLIP
from fedvlm.data import Client, Federation
from fedvlm.errors import FedvlmError
from fedvlm.testing import tiny
from fedvlm.training import device as devices
from fedvlm.training import metrics
from fedvlm.training.activations import TEST, Memory
from fedvlm.training.device import ComputeSection
from fedvlm.training.evaluation import ClientMetrics, compute_outputs, evaluate, pool_metrics
from fedvlm.training.metrics import Mean
from fedvlm.training.site import MAX_CACHED_MODELS, Site


@pytest.fixture(scope="module")
def clip() -> FrozenCLIP:
    return tiny.clip()


@pytest.fixture(scope="module")
def fed() -> Federation:
    """Base labels are positions in a list that is not sorted: source labels 2, 0, 3, 1."""
    made = tiny.federation()
    place = {0: 1, 1: 3, 2: 0, 3: 2}
    clients = tuple(replace(client, classes=tuple(sorted(place[k] for k in client.classes))) for client in made.clients)
    return replace(made, base=(2, 0, 3, 1), novel=(6, 4, 5), clients=clients)


def bench(clip: FrozenCLIP, fed: Federation, **more: object) -> Site:
    return replace(tiny.site(tiny.method("zero_shot"), clip, fed), **more)  # type: ignore[arg-type]


def by_hand(
    clip: FrozenCLIP, fed: Federation, indices: tuple[int, ...], classes: tuple[int, ...]
) -> tuple[np.ndarray, list[int]]:
    """Zero-shot logits image by image, class by class."""
    rows = []
    for index in indices:
        pixels = clip.preprocess.normalise(clip.preprocess.test(fed.source.records[index].image.open())[None])
        image = clip.encode_image(pixels)[0]
        row = []
        for label in classes:
            ids, eot = clip.tokenizer([f"a photo of a {fed.source.classnames[label].replace('_', ' ')}."])
            text = clip.encode_text(ids, eot)[0]
            row.append(float(torch.dot(image, text) / image.norm() / text.norm()) * 20)
        rows.append(row)
    return np.array(rows), [fed.source.records[index].label for index in indices]


def test_accuracies_of_a_client_by_hand(clip: FrozenCLIP, fed: Federation) -> None:
    """Local: own images, all base classes; local_own: own classes only; base and novel: whole sets, their own names."""
    table = bench(clip, fed)
    for client in fed.clients:
        result = evaluate(compute_outputs(table, client, {}, {})).values
        logits, labels = by_hand(clip, fed, client.local, fed.base)
        names = [fed.base[k] for k in logits.argmax(1)]
        assert result["local"] == pytest.approx(np.mean([a == b for a, b in zip(names, labels, strict=True)]))
        own = list(client.classes)
        names = [fed.base[own[k]] for k in logits[:, own].argmax(1)]
        assert result["local_own"] == pytest.approx(np.mean([a == b for a, b in zip(names, labels, strict=True)]))
        shifted = np.exp(logits - logits.max(1, keepdims=True))
        chance = (shifted / shifted.sum(1, keepdims=True))[range(len(labels)), [fed.base.index(k) for k in labels]]
        assert result["loss"] == pytest.approx(-np.log(chance).mean(), rel=1e-4)
        for key, classes in (("base", fed.base), ("novel", fed.novel)):
            logits, labels = by_hand(clip, fed, fed.tests[key], classes)
            names = [classes[k] for k in logits.argmax(1)]
            assert result[key] == pytest.approx(np.mean([a == b for a, b in zip(names, labels, strict=True)]))


def test_batches_make_no_difference(clip: FrozenCLIP, fed: Federation) -> None:
    client = fed.clients[0]
    whole = evaluate(compute_outputs(bench(clip, fed), client, {}, {})).values
    for batch in (1, 3):
        assert evaluate(compute_outputs(bench(clip, fed, batch=batch), client, {}, {})).values == pytest.approx(whole)


def test_what_a_client_lacks_is_left_out(clip: FrozenCLIP, fed: Federation) -> None:
    client = fed.clients[0]
    assert evaluate(compute_outputs(bench(clip, fed), replace(client, local=()), {}, {})).values.keys() == {
        "base",
        "novel",
    }
    assert "novel" not in evaluate(compute_outputs(bench(clip, fed), replace(client, novel=None), {}, {})).values
    assert "novel" not in evaluate(compute_outputs(bench(clip, fed, novel=None), client, {}, {})).values


def test_own_images_outside_the_base_set(clip: FrozenCLIP, fed: Federation) -> None:
    """A domain's client may own test images that the shared set lacks, and the other way round."""
    client = replace(fed.clients[0], local=fed.clients[0].train[:4])
    result = evaluate(compute_outputs(bench(clip, fed), client, {}, {})).values
    logits, labels = by_hand(clip, fed, client.local, fed.base)
    assert result["local"] == pytest.approx(
        np.mean([fed.base[k] == label for k, label in zip(logits.argmax(1), labels, strict=True)])
    )


def test_shared_sets_of_finished_features_are_gathered_once(clip: FrozenCLIP, fed: Federation) -> None:
    table = bench(clip, fed)
    first = [evaluate(compute_outputs(table, client, {}, {})).values for client in fed.clients]
    assert set(table.test_features) == {("base", FEATURE), ("novel", FEATURE)}
    table.activations.memory.clear()
    asked: list[int] = []
    inner = table.activations.get
    table.activations.get = lambda indices, *more: (asked.extend(indices), inner(indices, *more))[1]  # type: ignore[method-assign]
    assert [evaluate(compute_outputs(table, client, {}, {})).values for client in fed.clients] == first
    assert not set(asked) & {*fed.tests["base"], *fed.tests["novel"]}
    adapted = tiny.site(tiny.method("pfedmma"), clip, fed)
    evaluate(compute_outputs(adapted, fed.clients[0], adapted.base.init(torch.Generator()), {}))
    assert not adapted.test_features, "activations inside the encoder would not fit"


def test_labels_are_positions_in_the_class_list(clip: FrozenCLIP, fed: Federation) -> None:
    table = bench(clip, fed)
    for key, classes in (("base", fed.base), ("novel", fed.novel)):
        expected = [classes.index(fed.source.records[i].label) for i in fed.tests[key]]
        assert table.labels(fed.tests[key]).tolist() == expected
        assert table.labels(fed.tests[key]).dtype == torch.int64


def test_an_empty_evaluation_set(clip: FrozenCLIP, fed: Federation) -> None:
    empty = replace(fed, tests={"base": fed.tests["base"], "novel": ()})
    assert "novel" not in evaluate(compute_outputs(bench(clip, empty), fed.clients[0], {}, {})).values


def test_zero_shot_is_far_above_chance_where_text_and_image_agree(clip: FrozenCLIP, fed: Federation) -> None:
    """Labels stay with images: features planted at the class names' own text features are found again."""
    text = clip.classifier([fed.source.classnames[k] for k in range(7)])
    table = bench(clip, fed)
    planted = table.activations.memory[FEATURE] = Memory(table.activations.device)
    planted.add([(i, TEST) for i in range(len(fed.source))], text[[record.label for record in fed.source.records]])
    result = evaluate(compute_outputs(table, fed.clients[0], {}, {})).values
    assert (result["local"], result["base"], result["novel"], result["macro_f1"]) == (1.0, 1.0, 1.0, 1.0)


def test_tf32_is_for_gpus_and_only_where_asked() -> None:
    with pytest.raises(FedvlmError, match=r"tf32.*GPU"):
        devices.choose_device(ComputeSection(device="cpu", dtype="tf32"))


def test_choosing_a_device() -> None:
    before = torch.get_num_threads()
    try:
        made = devices.choose_device(ComputeSection(device="cpu", dtype="bfloat16", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
    assert (made.device.type, made.dtype) == ("cpu", torch.bfloat16)
    with made.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with devices.Device(torch.device("cpu")).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert devices.choose_device(ComputeSection()).device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "cpu:x", ""])
def test_a_device_that_is_not_there(name: str) -> None:
    with pytest.raises(FedvlmError, match=f"compute.device = '{name}' cannot be used here"):
        devices.choose_device(ComputeSection(device=name))


def test_a_client_is_found_by_what_it_declares(fed: Federation) -> None:
    """The fixture is what evaluation relies on: own classes are positions in `base`, sets exist."""
    for client in fed.clients:
        assert isinstance(client, Client)
        assert {fed.base[k] for k in client.classes} == {fed.source.records[i].label for i in client.train}
        assert client.base in fed.tests
    assert Path(fed.clients[0].name).name == fed.clients[0].name


def asked(monkeypatch: pytest.MonkeyPatch, table: Site) -> list[int]:
    """Numbers of images the base tuner is asked about, call by call."""
    sizes, real = list[int](), table.base.logits

    def count(*args: object) -> torch.Tensor:
        found = real(*args)  # type: ignore[arg-type]
        sizes.append(len(found))
        return found

    monkeypatch.setattr(table.base, "logits", count)
    return sizes


def test_clients_with_equal_models_are_measured_on_a_shared_set_once(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another client said is taken only while the tensors are the same numbers, changed in place or not."""
    chosen = tiny.simulation(tiny.method("promptfl"), clip, fed)
    sizes, count = asked(monkeypatch, chosen.site), len(fed.tests["base"])
    first = compute_outputs(chosen.site, fed.clients[0], chosen.spec.initial, {})
    copy = {name: tensor.clone() for name, tensor in chosen.spec.initial.items()}
    second = compute_outputs(chosen.site, fed.clients[1], copy, {})
    assert sizes == [count]
    assert torch.equal(first.base.logits, second.base.logits)
    copy["prompt"].neg_()
    third = compute_outputs(chosen.site, fed.clients[1], copy, {})
    copy["prompt"][..., ::2] += 0.5
    fourth = compute_outputs(chosen.site, fed.clients[1], copy, {})
    assert sizes == [count] * 3
    for found, tensors in ((third, -chosen.spec.initial["prompt"]), (fourth, copy["prompt"])):
        fresh = tiny.site(chosen.spec.method, clip, fed)
        expected = compute_outputs(fresh, fed.clients[1], {"prompt": tensors}, {}).base.logits
        assert (found.base.logits - expected).abs().max() < 1e-5
    assert (third.base.logits - fourth.base.logits).abs().max() > 1e-4


def test_a_bench_with_other_images_remembers_nothing(clip: FrozenCLIP, fed: Federation) -> None:
    table = tiny.site(tiny.method("zero_shot"), clip, fed)
    table.logits(table.base, {}, {}, "base")
    turned = replace(fed, tests=fed.tests | {"base": fed.tests["base"][::-1]})
    other = replace(table, federation=turned)
    assert torch.equal(other.logits(table.base, {}, {}, "base"), table.logits(table.base, {}, {}, "base").flip(0))


def test_a_model_made_from_own_images_answers_for_its_client_alone(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny.site(tiny.method("tip_adapter"), clip, fed)
    sizes, count = asked(monkeypatch, table), len(fed.tests["base"])
    without = table.logits(table.base, {}, {}, "base")
    ones = [compute_outputs(table, fed.clients[n], {}, {}).base.logits for n in (0, 2, 0)]
    assert sizes == [count] * 4
    assert torch.equal(ones[0], ones[2])
    assert all((one - without).abs().max() > 1e-3 for one in ones)


def test_the_calibration_error_is_of_all_own_images_together(clip: FrozenCLIP, fed: Federation) -> None:
    """Not the mean over clients, which few images each would drive up."""
    table = bench(clip, fed)
    found = [compute_outputs(table, client, {}, {}) for client in fed.clients]
    own = [one.local for one in found if one.local is not None]
    means = pool_metrics({str(n): evaluate(one) for n, one in enumerate(found)})
    logits, labels = torch.cat([one.logits for one in own]), torch.cat([one.labels for one in own])
    assert means["ece"] == pytest.approx(metrics.calibration(logits, labels).value)
    each = [metrics.calibration(one.logits, one.labels).value for one in own]
    assert means["ece"] < sum(each) / len(each)
    assert "ece" not in pool_metrics({"a": ClientMetrics({"base": Mean(1.0, 1)})})


def test_a_client_with_other_experts_is_measured_anew(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal tensors are not an equal model: with everything averaged, clients differ in the experts they got."""
    chosen = tiny.method("pfedmoap", share=["*"])
    table = tiny.site(chosen, clip, fed)
    assert table.novel is not None
    tensors = tiny.random(table.base, 0.5, torch.Generator().manual_seed(1))
    prompts = torch.randn(2, *tensors["prompt"].shape, generator=torch.Generator().manual_seed(2))
    sizes = asked(monkeypatch, table)
    found = [compute_outputs(table, fed.clients[n], tensors, {"experts.0000": prompts[n]}) for n in (0, 1)]
    assert len(sizes) == 2
    assert (found[0].base.logits - found[1].base.logits).abs().max() > 1e-3
    for n in (0, 1):
        fresh = compute_outputs(tiny.site(chosen, clip, fed), fed.clients[n], tensors, {"experts.0000": prompts[n]})
        assert (found[n].base.logits - fresh.base.logits).abs().max() < 1e-5
        assert fresh.novel is not None
        assert (found[n].novel.logits - fresh.novel.logits).abs().max() < 1e-5  # type: ignore[union-attr]


def test_few_tuners_are_remembered_and_the_oldest_gives_way(
    clip: FrozenCLIP, fed: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tiny.site(tiny.method("zero_shot"), clip, fed)
    tuners = [tiny.method("zero_shot").tuner(clip, fed.base_names, f"{n} {{}}") for n in range(MAX_CACHED_MODELS + 3)]
    for tuner in tuners:
        table.logits(tuner, {}, {}, "base")
        assert len(table.cached_models) <= MAX_CACHED_MODELS
    kept = [said.tuner for said in table.cached_models.values()]
    assert all(one is other for one, other in zip(kept, tuners[3:], strict=True))
