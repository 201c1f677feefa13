"""Twelve programs with one planted fault each."""

from tests.explanations import faulty_inference, faulty_training

FAULTY = (
    faulty_training.replicated_optimizer_state(),
    faulty_training.missing_constraint(),
    faulty_inference.wrong_spec_order(),
    faulty_inference.loop_gather(),
    faulty_training.wide_reduction(),
    faulty_inference.there_and_back(),
    faulty_training.sum_per_microbatch(),
    faulty_inference.replicated_parameter(),
    faulty_inference.full_rematerialization(),
    faulty_training.unsharded_logits(),
    faulty_training.nothing_donated(),
    faulty_inference.copied_cache(),
)
