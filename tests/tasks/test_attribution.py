"""AttributionTask under other people's Trainers: batches, number types, devices, files per batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fvlight import FvlightError, InputSpace, Network
from fvlight.attribution import guided_backprop, occlusion
from fvlight.tasks.attribution import AttributionTask, MapWriter, read_parts
from tests.helpers import handlers_taken_off, snapshot

METHODS: dict[str, dict[str, Any]] = {"guided": {}, "occlusion": {"sizes": (4, 4), "fill": "grey"}}


def network() -> Network:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 100, 4)]
    return Network(nn.Sequential(*layers), "small", InputSpace(3))


def images(count: int = 6) -> Tensor:
    return torch.rand(count, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def predict(task: AttributionTask, data: Any, **options: Any) -> Any:
    with handlers_taken_off():
        trainer = L.Trainer(
            logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False, **options
        )
        return trainer.predict(task, data)


@pytest.mark.filterwarnings("ignore:The 'predict_dataloader' does not have many workers")
class TestPredict:
    @pytest.mark.parametrize("inference_mode", [True, False])
    def test_any_trainer_and_any_batch_give_the_functions_maps(self, inference_mode: bool) -> None:
        chosen = network()
        before = snapshot(chosen.module)
        for batch in (1, 4):
            parts = predict(
                AttributionTask(chosen, METHODS, unit=2), DataLoader(images(), batch_size=batch),
                inference_mode=inference_mode,
            )  # fmt: skip
            maps = {name: torch.cat([part.maps[name] for part in parts]) for name in METHODS}
            torch.testing.assert_close(maps["guided"], guided_backprop(chosen, images(), None, 2))
            wanted = occlusion(chosen, images(), None, 2, sizes=(4, 4), fill="grey")
            torch.testing.assert_close(maps["occlusion"], wanted)
            assert torch.cat([part.units for part in parts]).tolist() == [2] * 6
        assert snapshot(chosen.module) == before

    def test_the_largest_unit_of_each_image(self) -> None:
        chosen = network()
        (part,) = predict(AttributionTask(chosen, {"guided": {}}), DataLoader(images(), batch_size=6))
        with torch.no_grad():
            values = chosen.module.eval()(images())
        assert part.units.tolist() == values.argmax(1).tolist()
        torch.testing.assert_close(part.values, values.max(1).values)
        torch.testing.assert_close(part.maps["guided"], guided_backprop(chosen, images(), None, part.units))

    def test_bfloat16_is_for_occlusion(self) -> None:
        chosen = network()
        (part,) = predict(
            AttributionTask(chosen, METHODS, unit=2), DataLoader(images(), batch_size=6), precision="bf16-mixed"
        )
        torch.testing.assert_close(part.maps["guided"], guided_backprop(chosen, images(), None, 2))
        exact = occlusion(chosen, images(), None, 2, sizes=(4, 4), fill="grey")
        narrow = occlusion(chosen, images(), None, 2, sizes=(4, 4), fill="grey", dtype=torch.bfloat16)
        assert float((narrow - exact).abs().max()) > 0
        torch.testing.assert_close(part.maps["occlusion"], narrow)

    def test_files_per_batch(self, tmp_path: Path) -> None:
        task = AttributionTask(network(), METHODS, unit=2)
        parts = predict(task, DataLoader(images(), batch_size=4), callbacks=[MapWriter(tmp_path)])
        assert sorted(path.name for path in tmp_path.iterdir()) == ["00000000.safetensors", "00000004.safetensors"]
        for written, part in zip(read_parts(tmp_path), parts, strict=True):
            torch.testing.assert_close(written["maps.guided"], part.maps["guided"])
            torch.testing.assert_close(written["images"], part.images)


def test_what_it_does_not_take() -> None:
    with pytest.raises(FvlightError, match="name at least one method"):
        AttributionTask(network(), {})
    with pytest.raises(FvlightError, match="did you mean 'guided'"):
        AttributionTask(network(), {"guide": {}})
    with pytest.raises(FvlightError, match="no layer '7'"):
        AttributionTask(network(), METHODS, layer="7")
