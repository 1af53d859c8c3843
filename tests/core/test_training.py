"""Training steps against the authors' numbers, and resuming from a state bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers import QUERIES, CountingEncoder, GoldenCase

from aprilcli.core.training import Batch, ProjectorTrainer, encode_singly, new_projector


def batch_of(golden: GoldenCase, pixels: torch.Tensor, text: torch.Tensor, masks: torch.Tensor) -> Batch:
    return Batch(encode_singly(golden.encoder, pixels), golden.encoder.grids, text, masks)


def golden_pixels(golden: GoldenCase) -> torch.Tensor:
    return torch.stack([golden.numbers[f"{query}/pixels"] for query in QUERIES])


def golden_batch(golden: GoldenCase) -> Batch:
    """The three queries as one batch, as in the authors' steps."""
    text = golden.numbers["text_features/metal_nut"]
    return batch_of(golden, golden_pixels(golden), text.expand(len(QUERIES), -1, -1), golden.numbers["train/masks"])


def trainer_of(golden: GoldenCase) -> ProjectorTrainer:
    return ProjectorTrainer(copy.deepcopy(golden.projector), golden.encoder.device)


def test_three_steps_agree_with_the_authors(golden: GoldenCase) -> None:
    trainer, batch = trainer_of(golden), golden_batch(golden)
    losses = [trainer.step(batch) for _ in range(3)]
    torch.testing.assert_close(torch.tensor(losses), golden.numbers["train/losses"], atol=1e-4, rtol=0)
    for name, weight in trainer.weights().items():
        torch.testing.assert_close(weight, golden.numbers[f"train/projector.{name}"], atol=1e-4, rtol=0)


def test_measuring_gives_the_loss_of_the_next_step_and_the_maps(golden: GoldenCase) -> None:
    trainer, batch = trainer_of(golden), golden_batch(golden)
    loss, anomaly_maps = trainer.measure(batch)
    for anomaly_map, query in zip(anomaly_maps, QUERIES, strict=True):
        torch.testing.assert_close(anomaly_map, golden.numbers[f"{query}/zero_shot_map"], atol=1e-4, rtol=0)
    assert trainer.step(batch) == loss  # measuring has changed nothing


def test_each_image_is_compared_with_the_prompts_of_its_own_object(golden_vit: GoldenCase) -> None:
    nut, pcb = (golden_vit.numbers[f"text_features/{name}"] for name in ("metal_nut", "pcb"))
    pixels, masks = golden_pixels(golden_vit)[:2], golden_batch(golden_vit).masks[:2]
    _, mixed = trainer_of(golden_vit).measure(batch_of(golden_vit, pixels, torch.stack([nut, pcb]), masks))
    for index, (text, other) in enumerate(((nut, pcb), (pcb, nut))):
        single = slice(index, index + 1)
        _, alone = trainer_of(golden_vit).measure(batch_of(golden_vit, pixels[single], text[None], masks[single]))
        torch.testing.assert_close(mixed[index], alone[0], atol=1e-5, rtol=0)
        _, wrong = trainer_of(golden_vit).measure(batch_of(golden_vit, pixels[single], other[None], masks[single]))
        assert not torch.allclose(mixed[index], wrong[0], atol=1e-3)


def test_training_resumes_from_a_state_bit_for_bit(golden: GoldenCase) -> None:
    batch = golden_batch(golden)
    straight, first, second = trainer_of(golden), trainer_of(golden), trainer_of(golden)
    for _ in range(4):
        straight.step(batch)
    for _ in range(2):
        first.step(batch)
    state = first.state()
    first.step(batch)  # a state is a copy, which later steps do not change
    second.restore(state)
    for _ in range(2):
        second.step(batch)
    assert all(torch.equal(weight, second.weights()[name]) for name, weight in straight.weights().items())
    assert straight.state().keys() == state.keys()


def test_a_state_of_another_projector_is_refused(golden_vit: GoldenCase) -> None:
    trainer = trainer_of(golden_vit)
    state = trainer.state()
    with pytest.raises(RuntimeError):
        trainer.restore({**state, "weight.fc.0.weight": torch.zeros(3, 3)})
    with pytest.raises(KeyError):
        trainer.restore({name: tensor for name, tensor in state.items() if name != "exp_avg.fc.1.bias"})


def test_the_encoder_is_not_trained(golden_vit: GoldenCase) -> None:
    pixels = golden_pixels(golden_vit)
    before = golden_vit.encoder.encode(pixels)
    trainer_of(golden_vit).step(golden_batch(golden_vit))
    after = golden_vit.encoder.encode(pixels)
    assert all(torch.equal(a, b) for a, b in zip(before.patch_tokens, after.patch_tokens, strict=True))


def test_an_image_is_encoded_once_and_whatever_the_others_are(golden: GoldenCase) -> None:
    encoder, pixels = CountingEncoder(golden.encoder), golden_pixels(golden)
    together, alone = encode_singly(encoder, pixels), encode_singly(golden.encoder, pixels[1:2])
    assert encoder.count == len(QUERIES)
    assert all(torch.equal(all_of[1:2], one) for all_of, one in zip(together, alone, strict=True))


def test_the_initial_weights_depend_only_on_the_seed(golden_vit: GoldenCase) -> None:
    spec = golden_vit.backbone.spec
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, other = new_projector(spec, 1), new_projector(spec, 2)
    assert torch.equal(torch.rand(1), expected)  # the global random state is kept
    again = new_projector(spec, 1)
    assert all(torch.equal(weight, again.state_dict()[name]) for name, weight in first.state_dict().items())
    assert not torch.equal(first.fc[0].weight, other.fc[0].weight)  # type: ignore[arg-type]
