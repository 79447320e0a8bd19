"""A training small enough for seconds: its models, its recipe and the words of its text."""

from simulator.commands.record_training import TrainedRecording, train_and_record
from simulator.runtime.recording.models import Shape
from simulator.runtime.recording.training import Recipe

SHAPE = Shape(
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_experts=4,
    top_k=2,
    intermediate_size=32,
    context=32,
    batch=4,
)
RECIPE = Recipe(num_evaluations=3)
STEPS = 40
WORDS = {
    "prose": ["the", "router", "chooses", "an", "expert", "for", "every", "token"],
    "numbers": ["0x1f", "3.14", "42", "[7]", "1e-9", "0b101"],
}


SEEDS = range(3, 5)


def trained(text, seeds=SEEDS) -> TrainedRecording:
    return train_and_record(text, 1.0, STEPS, 400, seeds, lambda *_: None, SHAPE, RECIPE)
