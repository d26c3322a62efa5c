"""The last level of UDPM alone, a GAN of 8 × 8 pixels, soon makes pictures as varied as the data."""

import pytest
import torch

from ornstein.data import open_source
from ornstein.denoisers import Denoiser
from ornstein.networks import UNetConfig, build
from ornstein.networks.discriminator import DiscriminatorConfig
from ornstein.objectives import TrainBatch
from ornstein.objectives.pyramid import PyramidLoss
from ornstein.parameterizations import LevelBelow
from ornstein.paths import PyramidPath
from ornstein.randomness import Noise, mix
from ornstein.training.udpm import UDPMConfig

SIDE, BATCH, STEPS = 32, 32, 200


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pictures_of_the_last_level_are_varied_after_200_steps(seed):
    """Standard deviation over pictures, in the mean over pixels: the data have 0.435, this has 0.42 to 0.45.

    With the mean of the discriminator's spread instead of its sum the pictures of some seeds are all alike. The limit
    of 0.38 leaves room for the rounding of other processors, which a GAN's training amplifies.
    """
    source = open_source("critters:1024", size=SIDE)
    clean = torch.stack([source[i].image for i in range(1024)]).float() / 127.5 - 1.0
    config, path = UDPMConfig(out="unused", size=SIDE), PyramidPath()
    small = UNetConfig(
        width=32,
        multipliers=(1, 2),
        blocks=1,
        attention=(),
        out_channels=12,
        time_features="fourier",
        time_scale=16.0,
    )
    net = build(small, seed=mix(seed, "network")).train()
    model = Denoiser(net, path, LevelBelow(), shape=(3, SIDE, SIDE))
    losses = PyramidLoss(metric="none", level_probabilities=(0.0, 0.0, 1.0))
    both = losses.on(path, SIDE, DiscriminatorConfig(width=24, dropout=config.discriminator.dropout), seed=seed)
    assert both.discriminator is not None
    both.discriminator.train()
    steppers = [
        settings.make([{"params": list(module.parameters())}], torch.device("cpu"))
        for settings, module in ((config.discriminator_settings(), both.discriminator), (config.optimizer, net))
    ]
    chosen = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        torch.manual_seed(step)
        positions = tuple(range(step * BATCH, (step + 1) * BATCH))
        rows = torch.randint(0, len(clean), (BATCH,), generator=chosen)
        batch, noise = TrainBatch(clean=clean[rows], cond={}, positions=positions), Noise.of(seed, positions)
        for ask, optimizer in zip((both.discriminator_loss, both), steppers, strict=True):
            found = ask(model, batch, noise, step / STEPS)
            assert found is not None
            found.total.backward()
            optimizer.step()
            optimizer.zero_grad()
    with torch.no_grad():
        drawn = path.stds[3] * Noise.of(999, range(512)).normal("start", (3, 4, 4))
        pictures = model(drawn, 3.0).clean / path.scale(2)
    assert pictures.std(0).mean() >= 0.38
