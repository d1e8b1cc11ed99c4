from __future__ import annotations

from torch import Tensor, nn

from tests.support.models import images, random_architecture, random_widths, zoo_analysis
from understudy.core.evaluation import Cost
from understudy.cost.predict import predict, predict_many
from understudy.graph.analysis import analyse


def test_many_are_predicted_as_one_by_one() -> None:
    analysis = zoo_analysis("resnet20")
    mixed = [random_architecture(analysis.space, seed) for seed in range(6)]
    mixed += [random_widths(analysis.space, seed) for seed in range(6)]
    assert predict_many(analysis, mixed) == [predict(analysis, architecture) for architecture in mixed]


def test_costs_of_a_network_by_hand() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 1, bias=False))
    analysis = analyse(model, images(2, size=4))
    positions = 4 * 4
    assert predict(analysis, analysis.space.full) == Cost(
        parameters=3 * 8 * 9 + 8 + 8 * 2,
        macs=positions * (3 * 8 * 9 + 8 * 2),
        weight_bytes=4 * (3 * 8 * 9 + 8 + 8 * 2),
        # Input and output of the activation: nothing else needs two tensors of 8 channels at a time.
        peak_activation_bytes=4 * positions * (8 + 8),
    )
    assert predict(analysis, analysis.space.full.with_width("0", 4)) == Cost(
        parameters=3 * 4 * 9 + 4 + 4 * 2,
        macs=positions * (3 * 4 * 9 + 4 * 2),
        weight_bytes=4 * (3 * 4 * 9 + 4 + 4 * 2),
        peak_activation_bytes=4 * positions * (4 + 4),
    )


def test_a_skip_connection_keeps_its_tensor_alive() -> None:
    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return x + self.c(self.b(x))

    analysis = analyse(Skip(), images(1, size=4))
    assert predict(analysis, analysis.space.full).peak_activation_bytes == 4 * 16 * (8 + 8 + 8)


def test_a_parameter_that_the_forward_pass_never_reaches_is_counted_whole() -> None:
    class WithSpare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.head, self.spare = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.used(x))

    analysis = analyse(WithSpare(), images(1, size=4))
    assert predict(analysis, analysis.space.full.with_width("used", 4)).parameters == 3 * 4 + 4 + 4 * 2 + 2 + 30
