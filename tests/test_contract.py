"""The network contract: an architecture is one class and one entry; it trains, calibrates, exports and predicts."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from recombinator.deploy.onnx import export
from recombinator.evaluation.calibration import calibrate
from recombinator.evaluation.tables import evaluate
from recombinator.models import MODELS, Architecture, KeypointNet, create_model, model_names
from recombinator.models.base import check_groups, merge_groups, split_weights
from recombinator.predict.engine import load_engine
from recombinator.training.loop import Trainer
from recombinator.training.recipe import get_recipe, make_optimizer
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights, read_tensors, save_weights


class Hourglass(KeypointNet):
    """A user's architecture: two poolings, two upsamplings, with skip connections."""

    def __init__(self, keypoints, *, size=80, channels=1, width=8):
        super().__init__()
        self.keypoints, self.size, self.channels = keypoints, size, channels
        self.down = nn.ModuleList(nn.Conv2d(a, width, 3, padding=1) for a in (channels, width, width))
        self.up = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.last = nn.Conv2d(width, keypoints, 1)

    def multiply_adds(self):
        return sum(c.weight.numel() * self.size**2 for c in (*self.down, *self.up, self.last))

    def weight_groups(self):
        return merge_groups(split_weights("trunk", self.down), split_weights("branch", self.up, self.last))

    def rectified(self):
        return [*self.down, *self.up]

    def forward(self, x):
        x, kept = (x.float() - 128) / 64, []
        for conv in self.down:
            x = torch.relu(conv(x))
            kept.append(x)
            x = F.max_pool2d(x, 2)
        x = kept.pop()
        for conv in self.up:
            x = torch.relu(conv(F.interpolate(x, scale_factor=2.0, mode="nearest") + kept.pop()))
        return self.last(x)


@pytest.fixture
def hourglass(monkeypatch):
    monkeypatch.setitem(MODELS, "hourglass", Architecture(Hourglass))
    return "hourglass"


def test_one_class_and_one_entry_are_a_whole_model(hourglass, faces5, tmp_path):
    summary = train(
        hourglass, faces5, tmp_path / "run", epochs=3, batch=8, revive=True, options={"size": 32}, learning_rate=5e-3
    )
    assert summary["epochs"] == 3
    decays = {
        g["weight_decay"] for g in make_optimizer(get_recipe("fast", hourglass), create_model(hourglass)).param_groups
    }
    assert decays == {0.0, 0.02}  # weights decay, biases do not
    calibrated = calibrate(tmp_path / "run", faces5 / "valid.parquet")
    save_weights(tmp_path / "w.safetensors", calibrated)
    assert load_weights(tmp_path / "w.safetensors").net.temperature == calibrated.temperature
    export(tmp_path / "w.safetensors", tmp_path / "w.onnx")
    crops = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    graph, net = (load_engine(tmp_path / f"w.{end}").run(crops) for end in ("onnx", "safetensors"))
    np.testing.assert_allclose(graph.points, net.points, atol=1e-3)
    assert evaluate(tmp_path / "w.safetensors", faces5 / "test.parquet")[1]["images"] == 6


def test_counting_dead_channels_does_not_affect_training(monkeypatch, faces5, tmp_path):
    class Noisy(Hourglass):
        """Random numbers and running statistics, which a pass in training mode would change."""

        def __init__(self, keypoints, **options):
            super().__init__(keypoints, **options)
            self.last = nn.Sequential(nn.BatchNorm2d(8), nn.Dropout(0.5), self.last)

    monkeypatch.setitem(MODELS, "noisy", Architecture(Noisy))
    for name in ("counted", "uncounted"):
        if name == "uncounted":
            monkeypatch.setattr(Trainer, "_count_dead_channels", lambda self: 0)
        train("noisy", faces5, tmp_path / name, epochs=3, batch=16, options={"size": 32})
    counted, uncounted = (read_tensors(tmp_path / n / "last.safetensors")[0] for n in ("counted", "uncounted"))
    assert counted.keys() == uncounted.keys() and all(torch.equal(counted[k], uncounted[k]) for k in counted)


def test_the_original_network_keeps_its_temperature(hourglass, faces5, tmp_path):
    train(hourglass, faces5, tmp_path / "run", epochs=1, options={"size": 32})
    loaded = load_weights(tmp_path / "run")
    made = loaded.calibrated({"temperature": 2.0, "covered_below": [0.1] * 5})
    assert (made.net.temperature, loaded.net.temperature) == (2.0, 1.0)


@pytest.mark.parametrize("name", model_names())
def test_every_parameter_is_in_one_group(name):
    net = create_model(name, width=4) if name == "denoiser" else create_model(name)
    check_groups(net, net.weight_groups())


def test_a_parameter_in_no_group_is_an_error(hourglass):
    class Forgetful(Hourglass):
        def weight_groups(self):
            return split_weights("trunk", self.down, self.up)

    with pytest.raises(InputError, match="last.weight is in no group"):
        make_optimizer(get_recipe("fast", "hourglass"), Forgetful(5))

    class Twice(Hourglass):
        def weight_groups(self):
            return merge_groups(super().weight_groups(), split_weights("trunk", self.last))

    with pytest.raises(InputError, match="in two groups"):
        make_optimizer(get_recipe("fast", "hourglass"), Twice(5))
