"""What every modality has to do, as functions of a `Subject` that raise `Broken` where it does not.

Weights are shaken first, so that nothing that starts at zero (the last layer of most networks) hides a fault.
"""

from collections.abc import Callable
from pathlib import Path

from guidance.testing.items import (
    conditions_are_what_their_specs_say,
    held_out_items_are_not_trained_on,
    items_are_the_same_however_fetched,
    what_is_encoded_is_decoded,
)
from guidance.testing.network import evaluating_draws_no_random_numbers, null_is_a_mask, rows_do_not_mix, the_noise_level_is_seen
from guidance.testing.sampling import a_step_is_one_call, guidance_is_what_its_scale_says, samples_do_not_depend_on_batches
from guidance.testing.showing import judges_are_better_than_guessing, measures_are_one_a_sample, samples_are_files
from guidance.testing.subject import Subject, keeps_the_protocols, require
from guidance.testing.training import a_run_is_resumed_and_loaded_bit_for_bit, every_weight_is_trained, one_batch_is_learnt_by_heart


def parts_keep_the_protocols(subject: Subject, folder: Path) -> None:
    modality = subject.modality
    keeps_the_protocols(modality)
    for name in modality.conditions:
        require(name.isidentifier(), f"an attribute is called {name!r}, which condition.NAME=... cannot say")
    require(list(subject.condition.keep) == list(modality.conditions), "its data gives other attributes than modality.conditions names")


CHECKS: tuple[Callable[[Subject, Path], None], ...] = (
    parts_keep_the_protocols,
    items_are_the_same_however_fetched,
    conditions_are_what_their_specs_say,
    what_is_encoded_is_decoded,
    null_is_a_mask,
    evaluating_draws_no_random_numbers,
    rows_do_not_mix,
    the_noise_level_is_seen,
    a_step_is_one_call,
    guidance_is_what_its_scale_says,
    samples_do_not_depend_on_batches,
    a_run_is_resumed_and_loaded_bit_for_bit,
    one_batch_is_learnt_by_heart,
    every_weight_is_trained,
    measures_are_one_a_sample,
    held_out_items_are_not_trained_on,
    judges_are_better_than_guessing,
    samples_are_files,
)
