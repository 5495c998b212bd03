"""The conformance suite: a modality that keeps the contract passes, and each check sees the fault that it is for."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from plugin_tools import noted, visible
from test_audio_cli import tones
from torch import Tensor, nn
from torch.nn import functional

from guidance import Condition, Label, Vector
from guidance.condition import NullEmbedding
from guidance.hydra import composed
from guidance.judge import train_judge
from guidance.modality import Split
from guidance.pictures import Pictures
from guidance.scaffold import new_modality
from guidance.split import InMemory
from guidance.testing.checks import CHECKS
from guidance.testing.subject import Broken, Subject, shake

CHECK = {check.__name__: check for check in CHECKS}
POINTS = Path(__file__).parent.parent / "examples" / "point-cloud-plugin"


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """A modality from outside: the skeleton of a plug-in, with few and short curves."""
    folder = tmp_path_factory.mktemp("plugin")
    new_modality("test_curves", folder / "package")
    noted(folder / "package", "polyguide-test-curves", {"test_curves": "test_curves:build"})
    with visible(folder / "package"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("POLYGUIDE_CACHE", str(folder / "cache"))
        for name in ("data", "network", "metrics", "render"):
            import_module(f"test_curves.{name}")
        small = ["data.count=240", "data.length=16", "network.width=12", "network.layers=2", "threads=1"]
        config = composed("train", ["modality=test_curves", *small, "out=unused"])
        known = lambda command, of: deepcopy(config) if of == ["modality=test_curves", "out=unused"] else composed(command, of)  # noqa: E731
        patch.setattr("guidance.testing.subject.composed", known)
        few = lambda *given, **settings: train_judge(*given, **(settings | {"steps": 60, "batch": 32}))  # noqa: E731
        patch.setattr("test_curves.metrics.train_judge", few)
        jaxtyping.config.update("jaxtyping_disable", True)  # as for users
        yield import_module("test_curves")
        jaxtyping.config.update("jaxtyping_disable", False)


@dataclass
class Planting:
    """What faults are planted in: the parts of the modality, whose methods are changed for one test."""

    patch: pytest.MonkeyPatch
    modality: Any

    def change(self, owner: Any, name: str, to: Callable[..., Any]) -> None:
        """``to`` is given the method that was there, then what that was given."""
        before = getattr(owner, name)
        self.patch.setattr(owner, name, lambda *given, **named: to(before, *given, **named))

    def forward(self, to: Callable[..., Tensor]) -> None:
        def forward(before: Any, self: nn.Module, x: Tensor, logsnr: Tensor, context: Any, x0_hat: Tensor | None = None) -> Tensor:
            return to(lambda x, logsnr, context: before(self, x, logsnr, context), self, x, logsnr, context)

        self.change(self.modality.network.Denoiser, "forward", forward)

    def build(self, **parts: Any) -> None:
        """The modality is made of other parts."""
        before = self.modality.build

        def build(data: Any, network: Any) -> Any:
            return replace(before(data, network), **parts)

        build.__module__ = before.__module__
        self.patch.setattr(self.modality, "build", build)

    def embed(self, to: Callable[[Condition], Condition]) -> None:
        """The network is told something else than the condition."""
        self.change(self.modality.network.Denoiser, "embed", lambda before, network, condition: before(network, to(condition)))

    def codec(self, name: str, to: Callable[..., Any]) -> None:
        kind = type("Odd", (self.modality.Standardized,), {})
        self.change(kind, name, to)
        self.patch.setattr(self.modality, "Standardized", kind)

    def metrics(self, name: str, to: Callable[..., Any]) -> None:
        self.change(self.modality.metrics.Metrics, name, to)

    def save(self, to: Callable[..., Any]) -> None:
        def save(self: Any, decoded: Any, folder: Path, names: Any, format: str | None = None) -> list[Path]:
            return to(partial_of(self.draw), decoded, folder, names, format)

        kind = type("Odd", (Pictures,), {"save": save})
        self.patch.setattr(self.modality.render, "render", lambda: kind(self.modality.render.draw))

    def split(self, which: str, to: Callable[[Split, list[int]], Any]) -> None:
        """What one of the splits gives for an index."""
        waves = self.modality.data.Waves
        whole = getattr(waves, which)

        class Odd:
            def __init__(self, split: Split):
                self.split = split

            def __len__(self) -> int:
                return len(self.split)

            def __getitems__(self, index: list[int]) -> Any:
                return to(self.split, index)

        self.patch.setattr(waves, which, property(lambda data: Odd(whole.fget(data))))

    def pace(self, **methods: Any) -> None:
        """The attribute with other methods."""
        pace = self.modality.data.PACE
        kind = type("Odd", (Label,), methods)
        self.patch.setattr(self.modality.data, "PACE", kind(pace.classes, pace.levels, pace.quantity))


def partial_of(draw: Any) -> Callable[..., list[Path]]:
    return Pictures(draw).save


@pytest.fixture
def plant(curves: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Planting:
    return Planting(monkeypatch, curves)


@pytest.mark.parametrize("check", CHECKS, ids=CHECK)
def test_a_modality_that_keeps_the_contract_passes(curves: ModuleType, check: Callable[..., None], tmp_path: Path):
    check(Subject.of("test_curves"), tmp_path)


# Faults: what is planted, in what, and what is said of it

FAULTS: list[Any] = []


def fault(check: str, says: str) -> Callable[[Callable[[Planting], None]], Callable[[Planting], None]]:
    def add(planted: Callable[[Planting], None]) -> Callable[[Planting], None]:
        FAULTS.append(pytest.param(CHECK[check], says, planted, id=f"{check}-{planted.__name__}"))
        return planted

    return add


@fault("parts_keep_the_protocols", "its metrics has no units; see guidance.modality.Metrics")
def no_units(plant: Planting) -> None:
    plant.patch.delattr(plant.modality.metrics.Metrics, "units")


@fault("parts_keep_the_protocols", r"its metrics.measure does not take \(decoded, condition, original\)")
def a_measure_without_the_original(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.metrics.Metrics, "measure", lambda self, decoded, condition: {})


@fault("parts_keep_the_protocols", "its network is no nn.Module")
def a_function_as_network(plant: Planting) -> None:
    plant.build(network=SimpleNamespace(embed=print))


@fault("parts_keep_the_protocols", "its data.test has no __len__ or no __getitems__")
def a_list_as_split(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.data.Waves, "test", [1, 2, 3])


@fault("parts_keep_the_protocols", "an attribute is called 'my form', which condition.NAME=... cannot say")
def an_attribute_that_cannot_be_said(plant: Planting) -> None:
    form, pace = plant.modality.data.FORM, plant.modality.data.PACE
    plant.patch.setattr(plant.modality.data.Waves, "conditions", {"my form": form, "pace": pace})
    plant.split("train", lambda split, index: renamed(split.__getitems__(index)))


def renamed(item: tuple[Tensor, Condition]) -> tuple[Tensor, Condition]:
    raw, condition = item
    return raw, Condition.of(**{"my form": condition.values["form"], "pace": condition.values["pace"]})


@fault("parts_keep_the_protocols", "its data gives other attributes than modality.conditions names")
def an_attribute_too_few(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.data.Waves, "conditions", {"form": plant.modality.data.FORM})


@fault("items_are_the_same_however_fetched", "item 1[0-9]+ is another one when it is fetched by itself")
def items_in_the_order_of_the_file(plant: Planting) -> None:
    plant.split("train", lambda split, index: split.__getitems__(sorted(index)))


@fault("items_are_the_same_however_fetched", "item 4[0-9] is another one")
def random_items(plant: Planting) -> None:
    plant.split("test", lambda split, index: (split.__getitems__(index)[0] + torch.randn(()), split.__getitems__(index)[1]))


@fault("items_are_the_same_however_fetched", "has another condition when it is fetched by itself")
def conditions_of_other_items(plant: Planting) -> None:
    def shuffled(split: Split, index: list[int]) -> Any:
        raw, condition = split.__getitems__(index)
        return raw, condition.rows(torch.arange(len(index)).flip(0))

    plant.split("train", shuffled)


@fault("items_are_the_same_however_fetched", "a split is empty")
def nothing_held_out(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.data.Waves, "test", property(lambda data: data.train.rows(torch.arange(0))))


@fault("conditions_are_what_their_specs_say", r"pace: absent\(\) is torch.float32, the data's values are torch.int64")
def absent_of_another_type(plant: Planting) -> None:
    plant.pace(absent=lambda self: torch.tensor(0.0))


@fault("conditions_are_what_their_specs_say", r"pace: absent\(\) has another shape than the data's values")
def absent_of_another_shape(plant: Planting) -> None:
    plant.pace(absent=lambda self: torch.tensor([0]))


@fault("conditions_are_what_their_specs_say", "form: the data has a class that the Label does not name")
def a_class_without_a_name(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.data, "FORM", Label(("sine", "square")))


@fault("conditions_are_what_their_specs_say", "pace: the data has a class that the Label does not name")
def one_held_out_item_of_a_class_without_a_name(plant: Planting) -> None:
    def odd(split: Split, index: list[int]) -> Any:
        raw, condition = split.__getitems__(index)
        return raw, condition.set(pace=torch.where(torch.tensor(index) == 11, 2, condition.values["pace"]))

    plant.split("test", odd)


@fault("conditions_are_what_their_specs_say", "pace: nonsense is taken for a value")
def a_parse_that_takes_anything(plant: Planting) -> None:
    plant.pace(parse=lambda self, value: torch.tensor(self.classes.index(value) if value in self.classes else 0))


@fault("conditions_are_what_their_specs_say", "pace: nonsense gives ValueError rather than UserError")
def a_parse_that_stumbles(plant: Planting) -> None:
    plant.pace(parse=lambda self, value: torch.tensor(self.classes.index(value)))


@fault("conditions_are_what_their_specs_say", "pace: a class is not read back as itself")
def classes_read_in_another_order(plant: Planting) -> None:
    plant.pace(parse=lambda self, value: 1 - Label.parse(self, value))


@fault("conditions_are_what_their_specs_say", "its data gives no pace")
def a_split_without_an_attribute(plant: Planting) -> None:
    def without(split: Split, index: list[int]) -> Any:
        raw, condition = split.__getitems__(index)
        return raw, Condition.of(form=condition.values["form"])

    plant.split("train", without)
    plant.split("test", without)


@fault("what_is_encoded_is_decoded", r"decode\(encode\(raw\)\) is not raw: 0.5 off")
def decoding_with_another_mean(plant: Planting) -> None:
    plant.codec("decode", lambda before, codec, x0: before(codec, x0) + 0.5)


@fault("what_is_encoded_is_decoded", r"decode\(encode\(raw\)\) is not raw")
def decoding_at_another_scale(plant: Planting) -> None:
    plant.codec("decode", lambda before, codec, x0: 1.1 * before(codec, x0))


@fault("what_is_encoded_is_decoded", r"decode\(encode\(raw\)\) is not raw")
def decoding_backwards(plant: Planting) -> None:
    plant.codec("decode", lambda before, codec, x0: before(codec, x0).flip(1))


@fault("what_is_encoded_is_decoded", "project changes real data")
def a_projection_that_is_too_narrow(plant: Planting) -> None:
    plant.codec("project", lambda before, codec, x0: x0.clamp(-0.5, 0.5))


@fault("what_is_encoded_is_decoded", "project changes what it has made")
def a_projection_that_is_not_idempotent(plant: Planting) -> None:
    plant.codec("project", lambda before, codec, x0: torch.where(x0.abs() < 2.5, x0, 0.9 * x0))


@fault("what_is_encoded_is_decoded", "x0 has a root mean square of 2[0-9]")
def a_codec_that_was_not_fitted_to_unit_scale(plant: Planting) -> None:
    plant.codec("encode", lambda before, codec, raw: 25 * before(codec, raw))


@fault("what_is_encoded_is_decoded", "encode gives what is not finite")
def a_codec_that_divides_by_nothing(plant: Planting) -> None:
    plant.codec("fit", lambda before, codec, split: before(codec, split) or codec.deviation.fill_(0))


@fault("what_is_encoded_is_decoded", r"encode gives \[16\], the modality says \[17\]")
def another_shape(plant: Planting) -> None:
    plant.build(shape=(17,))


@fault("what_is_encoded_is_decoded", "decode gives 3 samples of 4")
def a_sample_is_lost(plant: Planting) -> None:
    plant.codec("decode", lambda before, codec, x0: before(codec, x0)[1:])


@fault("what_is_encoded_is_decoded", "decode gives another sample after project")
def a_projection_to_another_sample(plant: Planting) -> None:
    plant.codec("project", lambda before, codec, x0: x0 * (1 + 1e-3))
    plant.codec("decode", lambda before, codec, x0: before(codec, x0) + 0.1 * (x0.abs().amax(1, keepdim=True) * 1e3 % 2))


@fault("what_is_encoded_is_decoded", "two different items decode to the same")
def a_codec_that_says_nothing(plant: Planting) -> None:
    plant.codec("decode", lambda before, codec, x0: torch.zeros(len(x0), 1))


@fault("null_is_a_mask", "form: its value is seen although it is absent")
def values_that_are_seen_though_absent(plant: Planting) -> None:
    plant.embed(lambda condition: Condition.of(**condition.values))


@fault("null_is_a_mask", "number: its value is seen although it is absent")
def nan_is_seen_though_absent(plant: Planting) -> None:
    with_numbers(plant)
    before = NullEmbedding.forward

    def unblanked(self: Any, values: Tensor, keep: Tensor) -> Tensor:
        return before(self, values, keep) if values.ndim == 1 else self.embed(values) * keep[:, None] + self.null * ~keep[:, None]

    plant.patch.setattr(NullEmbedding, "forward", unblanked)


def with_numbers(plant: Planting) -> None:
    """A third attribute, a number."""

    def more(split: Split, index: list[int]) -> Any:
        raw, condition = split.__getitems__(index)
        return raw, condition.set(number=torch.tensor(index)[:, None] / 100)

    data = plant.modality.data
    plant.patch.setattr(data.Waves, "conditions", {"form": data.FORM, "pace": data.PACE, "number": Vector(1)})
    plant.split("train", more)
    plant.split("test", more)


@fault("null_is_a_mask", "number: the network does not see its value")
def a_number_that_is_not_seen(plant: Planting) -> None:
    with_numbers(plant)
    plant.embed(lambda condition: replace(condition, values={**condition.values, "number": 0 * condition.values["number"]}))


@fault("null_is_a_mask", "pace: the network does not see whether it is there")
def an_attribute_that_is_not_seen(plant: Planting) -> None:
    plant.embed(lambda condition: condition.drop("pace"))


@fault("null_is_a_mask", "pace: the network does not see its value")
def a_value_that_is_not_seen(plant: Planting) -> None:
    plant.embed(lambda condition: replace(condition, values={**condition.values, "pace": 0 * condition.values["pace"]}))


@fault("null_is_a_mask", "pace: its absence is the same as 'fast'")
def a_class_as_null(plant: Planting) -> None:
    def filled(condition: Condition) -> Condition:
        return condition.set(pace=torch.where(condition.keep["pace"], condition.values["pace"], 1))

    plant.embed(filled)


@fault("null_is_a_mask", "pace: dropping it for one sample changes others")
def dropping_for_all(plant: Planting) -> None:
    plant.embed(lambda c: replace(c, keep={**c.keep, "pace": c.keep["pace"] & c.keep["pace"].all()}))


@fault("evaluating_draws_no_random_numbers", "in eval mode the network says another thing every time")
def dropout_in_eval(plant: Planting) -> None:
    plant.forward(lambda before, network, *given: functional.dropout(before(*given), 0.5, training=True))


@fault("evaluating_draws_no_random_numbers", "in eval mode the network draws random numbers")
def random_numbers_for_nothing(plant: Planting) -> None:
    plant.forward(lambda before, network, *given: before(*given) + 0 * torch.rand(()))


@fault("rows_do_not_mix", "sample 0 of a batch is another one by itself")
def normalizing_over_the_batch(plant: Planting) -> None:
    plant.forward(lambda before, network, x, logsnr, context: before(x - 0.5 * x.mean(0), logsnr, context))


@fault("rows_do_not_mix", "the output depends on the order of the batch")
def one_noise_level_for_all(plant: Planting) -> None:
    plant.forward(lambda before, network, x, logsnr, context: before(x, logsnr[:1].expand(len(x)), context))


@fault("rows_do_not_mix", "the output depends on the order of the batch")
def places_that_matter(plant: Planting) -> None:
    plant.forward(lambda before, network, *given: before(*given) + 0.1 * torch.arange(len(given[0]))[:, None])


@fault("the_noise_level_is_seen", "the network does not see logsnr")
def blind_to_noise(plant: Planting) -> None:
    plant.forward(lambda before, network, x, logsnr, context: before(x, 0 * logsnr, context))


def once_more(before: Any, network: Any, *given: Any) -> Tensor:
    """The network asks itself, once."""
    if not getattr(network, "asked", False):
        network.asked = True
        network(*given)
        network.asked = False
    return before(*given)


@fault("a_step_is_one_call", "3 steps under guidance took 6 network calls")
def two_calls_a_step(plant: Planting) -> None:
    plant.forward(once_more)


@fault("a_step_is_one_call", "embed was called 4 times in one run")
def embedding_at_every_step(plant: Planting) -> None:
    def remembered(before: Any, network: Any, condition: Condition) -> Tensor:
        network.told = condition
        return before(network, condition)

    plant.change(plant.modality.network.Denoiser, "embed", remembered)
    plant.forward(lambda before, network, x, logsnr, context: before(x, logsnr, 0 * context + network.embed(network.told)))


def counting(before: Any, network: Any, *given: Any) -> Tensor:
    """The network counts its calls."""
    network.count = getattr(network, "count", 0) + 1
    return before(*given) * (1 + 0.1 * network.count)


@fault("guidance_is_what_its_scale_says", "guidance at scale 1 is not the conditional model")
def counting_steps(plant: Planting) -> None:
    plant.forward(counting)


@fault("guidance_is_what_its_scale_says", "guidance at scale 0 is not the unconditional model")
def remembering_the_last_condition(plant: Planting) -> None:
    """What nothing was asked of is made with the condition of a run before."""

    def embed(before: Any, network: Any, condition: Condition) -> Tensor:
        asked = bool(torch.stack(list(condition.keep.values())).any())
        context = before(network, condition)
        if asked:
            network.__dict__["remembered"] = context
        return context if asked else network.__dict__.pop("remembered", context)

    plant.change(plant.modality.network.Denoiser, "embed", embed)


@fault("samples_do_not_depend_on_batches", "the same seed gives other samples")
def a_memory_of_samples(plant: Planting) -> None:
    plant.forward(counting)


@fault("samples_do_not_depend_on_batches", "samples depend on the size of the batch")
def centring_the_batch(plant: Planting) -> None:
    plant.forward(lambda before, network, *given: before(*given) - before(*given).mean())


@fault("samples_do_not_depend_on_batches", "samples depend on the rows of a network call")
def a_context_whose_rows_cannot_be_taken(plant: Planting) -> None:
    plant.change(plant.modality.network.Denoiser, "embed", lambda before, *given: SimpleNamespace(whole=before(*given)))
    plant.forward(lambda before, network, x, logsnr, context: before(x, logsnr, context.whole[: len(x)]))


def jittered(split: Split, index: list[int]) -> Any:
    raw, condition = split.__getitems__(index)
    return raw + 0.3 * torch.randn(raw.shape), condition


@fault("a_run_is_resumed_and_loaded_bit_for_bit", "training that was interrupted gives another network")
def augmenting_at_random(plant: Planting) -> None:
    plant.split("train", jittered)


@fault("a_run_is_resumed_and_loaded_bit_for_bit", "training that was interrupted gives another network")
def counting_training_steps(plant: Planting) -> None:
    plant.forward(counting)


@fault("a_run_is_resumed_and_loaded_bit_for_bit", "training changes no weight at all")
def a_loss_that_weights_do_not_change(plant: Planting) -> None:
    plant.forward(lambda before, network, *given: before(*given).detach() + 0 * network.last.bias)


@fault("a_run_is_resumed_and_loaded_bit_for_bit", "a model that is loaded twice gives different samples")
def random_numbers_that_are_not_stored(plant: Planting) -> None:
    def init(before: Any, network: Any, *given: Any, **named: Any) -> None:
        before(network, *given, **named)
        network.random = torch.rand(())

    plant.change(plant.modality.network.Denoiser, "__init__", init)
    plant.forward(lambda before, network, *given: before(*given) * (1 + network.random))


@fault("one_batch_is_learnt_by_heart", "the network does not learn them by heart")
def blind_to_data(plant: Planting) -> None:
    plant.forward(lambda before, network, x, logsnr, context: before(0 * x, logsnr, context))


@fault("one_batch_is_learnt_by_heart", "the loss is nan at step 0")
def not_a_number(plant: Planting) -> None:
    plant.forward(lambda before, network, *given: (before(*given) - 1e9).sqrt())


@fault("every_weight_is_trained", "the loss does not depend on network.spare.weight, network.spare.bias")
def a_layer_that_is_not_used(plant: Planting) -> None:
    def init(before: Any, network: Any, *given: Any, **named: Any) -> None:
        before(network, *given, **named)
        network.spare = nn.Linear(2, 2)

    plant.change(plant.modality.network.Denoiser, "__init__", init)


def measuring(plant: Planting, to: Callable[[dict[str, Tensor]], Mapping[str, Any]]) -> None:
    plant.metrics("measure", lambda before, metrics, *given: to(dict(before(metrics, *given))))


@fault("measures_are_one_a_sample", "strength of a sample depends on the others")
def ranking_the_batch(plant: Planting) -> None:
    measuring(plant, lambda found: found | {"strength": found["strength"] / found["strength"].max()})


@fault("measures_are_one_a_sample", "measure gives strength that is not one number a sample")
def a_mean_over_samples(plant: Planting) -> None:
    measuring(plant, lambda found: found | {"strength": found["strength"].mean()})


@fault("measures_are_one_a_sample", "measure gives an infinite strength")
def decibels_of_silence(plant: Planting) -> None:
    measuring(plant, lambda found: found | {"strength": (0 * found["strength"]).log()})


@fault("measures_are_one_a_sample", "units does not say what strength is")
def a_unit_too_few(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.metrics.Metrics, "units", {"crossings": "of zero, a curve"})


@fault("measures_are_one_a_sample", "units does not say what distance is")
def a_measure_without_a_unit_where_there_is_an_original(plant: Planting) -> None:
    def measure(before: Any, metrics: Any, decoded: Tensor, condition: Condition, original: Tensor | None = None) -> Any:
        found = before(metrics, decoded, condition)
        return found if original is None else {**found, "distance": (decoded - original).norm(dim=1)}

    plant.metrics("measure", measure)


@fault("measures_are_one_a_sample", "pace is ordered by crossings, which measure does not give")
def a_quantity_that_is_not_measured(plant: Planting) -> None:
    measuring(plant, lambda found: {"strength": found["strength"]})


@fault("measures_are_one_a_sample", "together gives spread that is no float")
def a_tensor_of_the_whole_set(plant: Planting) -> None:
    plant.metrics("together", lambda before, metrics, decoded: {"spread": decoded.std()})


@fault("measures_are_one_a_sample", "units does not say what spread is")
def a_measure_of_the_whole_set_without_a_unit(plant: Planting) -> None:
    plant.metrics("together", lambda before, metrics, decoded: {"spread": float(decoded.std())})


@fault("measures_are_one_a_sample", "flat gives no floating-point vectors")
def whole_numbers_as_vectors(plant: Planting) -> None:
    plant.metrics("flat", lambda before, metrics, decoded: decoded.round().long())


@fault("held_out_items_are_not_trained_on", "100% of the held-out items are among the training items")
def testing_on_training_items(plant: Planting) -> None:
    plant.patch.setattr(plant.modality.data.Waves, "test", plant.modality.data.Waves.train)


@fault("held_out_items_are_not_trained_on", "2[0-9]% of the held-out items are among the training items")
def a_quarter_of_the_test_was_trained_on(plant: Planting) -> None:
    waves = plant.modality.data.Waves
    test = waves.test.fget

    def mixed(data: Any) -> InMemory:
        train, held = data.train, test(data)
        return InMemory(torch.cat([held.raw, train.raw[1:17]]), Condition.cat([held.condition, train.condition.rows(slice(1, 17))]))

    plant.patch.setattr(waves, "test", property(mixed))


class Guess:
    """A judge that does not look."""

    def __init__(self, accuracy: float, count: int = 3, random: bool = False):
        self.accuracy, self.count, self.random = accuracy, count, random

    def __call__(self, decoded: Tensor) -> tuple[Tensor, Tensor]:
        n = len(decoded)
        return (torch.rand if self.random else torch.ones)(n, 2), torch.ones(n, self.count)


def judged(plant: Planting, judge: Any) -> None:
    plant.metrics("judge", lambda *_: judge)


@fault("judges_are_better_than_guessing", r"the judge of form is right on 33.3%, always saying one class on 33.3%")
def a_judge_at_chance(plant: Planting) -> None:
    judged(plant, Guess(1 / 3))


@fault("judges_are_better_than_guessing", "says it is right on 99.0%; of decoded data it is on 33.3%")
def a_judge_that_boasts(plant: Planting) -> None:
    judged(plant, Guess(0.99))


@fault("judges_are_better_than_guessing", r"gives \[4, 2\] logits for 4 samples of 3 classes")
def a_judge_of_other_classes(plant: Planting) -> None:
    judged(plant, Guess(0.9, count=2))


@fault("judges_are_better_than_guessing", "gives no feature vector a sample")
def a_judge_without_features(plant: Planting) -> None:
    judge = Guess(0.9)
    judged(plant, Guess(0.9))
    plant.patch.setattr(Guess, "__call__", lambda self, decoded: (torch.ones(len(decoded)), torch.ones(len(decoded), judge.count)))


@fault("judges_are_better_than_guessing", "sees another thing every time")
def a_judge_with_dropout(plant: Planting) -> None:
    judged(plant, Guess(0.9, random=True))


@fault("judges_are_better_than_guessing", "the judge of form has no accuracy, or cannot be called")
def a_judge_without_accuracy(plant: Planting) -> None:
    judged(plant, lambda decoded: None)


@fault("judges_are_better_than_guessing", "of decoded data it is on")
def a_judge_of_raw_data_only(plant: Planting) -> None:
    """It was trained on what the codec takes, and is shown what the codec gives."""
    plant.codec("decode", lambda before, codec, x0: before(codec, x0)[:, :1].expand(-1, 16))


@fault("samples_are_files", "format=jpeg writes 000000.jpg, not 000000.jpeg")
def a_suffix_of_ones_own(plant: Planting) -> None:
    def save(before: Any, decoded: Any, folder: Path, names: Any, format: str | None) -> list[Path]:
        files = before(decoded, folder, names, format)
        return [file.rename(file.with_suffix(".jpg")) if format == "jpeg" else file for file in files]

    plant.save(save)


@fault("samples_are_files", "format=png writes 1 files for 4 samples")
def one_file_for_all(plant: Planting) -> None:
    plant.save(lambda before, decoded, folder, names, format: before(decoded[:1], folder, names[:1], format))


@fault("samples_are_files", "format=png writes the same for every sample")
def the_same_for_every_sample(plant: Planting) -> None:
    plant.save(lambda before, decoded, folder, names, format: before(decoded[:1].expand(len(names), -1), folder, names, format))


@fault("samples_are_files", "format=png: 000000.png was not written, or is empty")
def a_name_without_a_file(plant: Planting) -> None:
    plant.save(lambda before, decoded, folder, names, format: [folder / f"{name}.{format or 'png'}" for name in names])


@fault("samples_are_files", "format=webp writes into .*, not into the folder that it is given")
def another_folder(plant: Planting) -> None:
    def save(before: Any, decoded: Any, folder: Path, names: Any, format: str | None) -> list[Path]:
        return before(decoded, folder.parent if format == "webp" else folder, names, format)

    plant.save(save)


@fault("samples_are_files", "format=png writes nothing, and there are no words to be written instead")
def nothing_written(plant: Planting) -> None:
    plant.save(lambda *_: [])


@fault("samples_are_files", "without a format it is not the first one that is written")
def another_usual_format(plant: Planting) -> None:
    plant.save(lambda before, decoded, folder, names, format: before(decoded, folder, names, format or "tiff"))


@fault("samples_are_files", "its render has 1 words for 4 samples")
def one_word_for_all(plant: Planting) -> None:
    kind = type("Odd", (Pictures,), {"words": lambda self, decoded: ["all of them"]})
    plant.patch.setattr(plant.modality.render, "render", lambda: kind(plant.modality.render.draw))


@fault("samples_are_files", "its animation was not written to")
def no_animation(plant: Planting) -> None:
    kind = type("Odd", (Pictures,), {"animate": lambda self, frames, path: path})
    plant.patch.setattr(plant.modality.render, "render", lambda: kind(plant.modality.render.draw))


@fault("samples_are_files", "its table was not written to")
def no_table(plant: Planting) -> None:
    kind = type("Odd", (Pictures,), {"table": lambda self, decoded, path, rows, columns: path})
    plant.patch.setattr(plant.modality.render, "render", lambda: kind(plant.modality.render.draw))


@pytest.mark.parametrize(("check", "says", "planted"), FAULTS)
def test_a_fault_is_seen_by_its_check(
    plant: Planting, tmp_path: Path, check: Callable[..., None], says: str, planted: Callable[[Planting], None]
):
    random.seed(0)
    planted(plant)
    with pytest.raises(Broken, match=says):
        check(Subject.of("test_curves"), tmp_path)


def test_every_check_has_a_fault_that_it_sees():
    assert {parameters.values[0] for parameters in FAULTS} == set(CHECKS)


def test_too_few_items_to_ask_are_told(plant: Planting):
    plant.patch.setattr(plant.modality.data.Waves, "train", property(lambda data: data._part(0).rows(torch.arange(3))))
    with pytest.raises(Broken, match="waves has fewer than 4 training items"):
        Subject.of("test_curves")


# What modalities may do


def all_pass(folder: Path) -> None:
    subject = Subject.of("test_curves")
    for name, check in CHECK.items():
        (folder / name).mkdir()
        check(subject, folder / name)


def test_a_modality_may_have_no_attributes(plant: Planting, tmp_path: Path):
    plant.patch.setattr(plant.modality.data.Waves, "conditions", {})
    for which in ("train", "test"):
        plant.split(which, lambda split, index: (split.__getitems__(index)[0], Condition()))
    all_pass(tmp_path)


def test_an_attribute_may_be_absent_with_any_value_and_all_of_them_of_one_item(plant: Planting, tmp_path: Path):
    def odd(split: Split, index: list[int]) -> Any:
        raw, condition = split.__getitems__(index)
        gone = torch.tensor(index) % 16 == 0
        values = {name: torch.where(gone, -1, value) for name, value in condition.values.items()}
        return raw, Condition(values, {name: keep & ~gone for name, keep in condition.keep.items()})

    plant.split("train", odd)
    plant.split("test", odd)
    assert not any(keep[0] for keep in Subject.of("test_curves").condition.keep.values())
    all_pass(tmp_path)


def test_a_codec_may_lose_detail(plant: Planting, tmp_path: Path):
    plant.codec("encode", lambda before, codec, raw: (8 * before(codec, raw)).round() / 8)
    plant.codec("project", lambda before, codec, x0: (8 * before(codec, x0)).round() / 8)
    CHECK["what_is_encoded_is_decoded"](Subject.of("test_curves"), tmp_path)


def test_data_may_repeat_itself(plant: Planting, tmp_path: Path):
    for which in ("train", "test"):
        plant.split(which, lambda split, index: split.__getitems__([k % 12 for k in index]))
    # What is held out is six other curves.
    plant.split("test", lambda split, index: (-split.__getitems__(index)[0], split.__getitems__(index)[1]))
    CHECK["held_out_items_are_not_trained_on"](Subject.of("test_curves"), tmp_path)
    plant.patch.setattr(plant.modality.data.Waves, "test", plant.modality.data.Waves.train)
    CHECK["held_out_items_are_not_trained_on"](Subject.of("test_curves"), tmp_path)


def test_samples_may_be_words_alone(plant: Planting, tmp_path: Path):
    kind = type(
        "Words",
        (Pictures,),
        {"formats": ("jsonl",), "save": lambda *_, **__: [], "words": lambda self, decoded: [str(row) for row in decoded.tolist()]},
    )
    plant.patch.setattr(plant.modality.render, "render", lambda: kind(plant.modality.render.draw))
    CHECK["samples_are_files"](Subject.of("test_curves"), tmp_path)


def test_a_network_may_have_dropout_and_a_running_average(plant: Planting, tmp_path: Path):
    def init(before: Any, network: Any, *given: Any, **named: Any) -> None:
        before(network, *given, **named)
        network.norm = nn.BatchNorm1d(16, affine=False)

    plant.change(plant.modality.network.Denoiser, "__init__", init)
    plant.forward(
        lambda before, network, x, logsnr, context: functional.dropout(before(network.norm(x), logsnr, context), 0.1, network.training)
    )
    all_pass(tmp_path)


def test_copies_are_found_among_many_training_items(curves: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """All held-out items are trained on, of which a check that looks at a part of the training items sees a part."""
    monkeypatch.setattr(curves.data.Waves, "test", property(lambda data: data.train.rows(torch.arange(3, 190))))
    subject = Subject.of("test_curves")
    with pytest.raises(Broken, match="of the held-out items are among the training items"):
        CHECK["held_out_items_are_not_trained_on"](subject, tmp_path, most=40)


def test_shaking_leaves_nothing_at_zero_but_what_is_frozen():
    module = nn.Linear(3, 3)
    nn.init.zeros_(module.weight)
    module.bias.requires_grad_(False)
    before = module.bias.clone()
    shake(module)
    assert bool((module.weight != 0).all()) and torch.equal(module.bias, before)
    assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.8)


# The suite as it is run

QUICK = """
import sys, json, pytest
from guidance import judge
plain = judge.train_judge
judge.train_judge = lambda *given, **settings: plain(*given, **(settings | {"steps": 60, "batch": 32}))
sys.exit(max(int(pytest.main(["--pyargs", "guidance.testing", "-p", "no:cacheprovider", *options])) for options in json.loads(sys.argv[1])))
"""
IMAGE = ["data=digits", "network.channels=8", "network.multipliers=[1]", "network.blocks=1"]
AUDIO = ["data=audio_folder", "data.root=tones", "data.rate=8000", "data.length=2048", "data.mel={mels:16,hop:256,window:512}"]
AUDIO += ["data.condition=both", "network.channels=8", "network.layers=2"]
ENCODER = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 16, "layer_types": "[full_attention]"}
TEXT = [
    "data=text_file",
    "data.path=lines.csv",
    "data.attributes=[colour]",
    "data.length=8",
    "tokenizer=words",
    "modality.codec.width=8",
    "modality.codec.kind=random",
]
TEXT += [f"network.encoder.{name}={value}" for name, value in ENCODER.items()]
SUITES = {
    "image": IMAGE,
    "audio": AUDIO,
    "text": TEXT,
    "point_cloud": ["data.count=240", "data.points=16"],
}


def in_a_process(folder: Path, *arguments: str, path: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    settings = {"POLYGUIDE_CACHE": str(folder / "cache"), "PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env={**os.environ, **settings})


def test_the_suite_passes_for_all_modalities_and_for_one_from_outside(tmp_path: Path):
    """The skeleton's own tests run it for the skeleton."""
    tones(tmp_path / "tones", n=10)
    words = [("red", "cat"), ("green", "dog"), ("blue", "owl")]
    lines = [f"The {colour} {kind} has {k} of {k * k % 17}.,{colour}" for k in range(40) for colour, kind in words]
    (tmp_path / "lines.csv").write_text("\n".join(["text,colour", *lines]) + "\n")
    noted(tmp_path / "notes", "polyguide-point-cloud", {"point_cloud": "point_cloud:build"})
    options = [[f"--modality={name}", *(f"--override={setting}" for setting in settings)] for name, settings in SUITES.items()]
    done = in_a_process(tmp_path, "-c", QUICK, json.dumps(options), path=(tmp_path / "notes", POINTS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(f"{1 + len(CHECKS)} passed") == len(SUITES), done.stdout


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "which modality? pytest --pyargs guidance.testing --modality=NAME, one of: audio, image"),
        (["--modality=imgae"], "there is no modality 'imgae' (did you mean 'image'?); choose from: audio, image"),
        (["--modality=image", "--override=network.channel=8"], "modality=image cannot be made: there is no config key 'network.channel'"),
        (
            ["--modality=image", "--override=data=image_folder", "--override=data.root=none"],
            "modality=image cannot be made: data.root=none",
        ),
    ],
    ids=["none", "unknown", "setting", "data"],
)
def test_what_cannot_be_asked_is_one_line(capsys: pytest.CaptureFixture[str], options: list[str], says: str):
    assert pytest.main(["--pyargs", "guidance.testing", "-p", "no:cacheprovider", *options]) == 2
    said = capsys.readouterr().out
    assert len([line for line in said.splitlines() if says in line]) == 1, said
    assert not any(word in said for word in ("Traceback", "ERROR", "FAILED", "def ")), said


def test_a_suite_that_fails_says_why_in_a_line(plant: Planting, capsys: pytest.CaptureFixture[str]):
    plant.forward(lambda before, network, x, logsnr, context: before(x, 0 * logsnr, context))
    chosen = ["--pyargs", "guidance.testing", "--modality=test_curves", "-k", "logsnr or noise_level", "-p", "no:cacheprovider"]
    assert pytest.main(chosen) == 1
    said = capsys.readouterr().out
    assert "\nthe network does not see logsnr\n" in said and "Traceback" not in said and "def the_noise_level" not in said


def test_the_options_cost_nothing_where_they_are_not_used():
    """pytest loads them in every environment that has polyguide."""
    script = "import sys, guidance.testing.plugin; print(sorted({'torch', 'numpy', 'hydra', 'jaxtyping'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
