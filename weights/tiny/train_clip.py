"""Train the small CLIP and its projector from scratch on drawn products.

A step uses P products with five images each: three good ones, of which one or two are references, and two anomalous
ones. It adds up these losses. All except attention resemble the way the model is used later:

- state: 100 · F_c · (anomalous - normal text feature), as a classifier of the image and as a ranking of the images of
  one product;
- attention: the share of the attention pool's weight that lies on the defect, where there is one;
- contrast: images against captions;
- dense: focal and dice loss of the zero-shot map of every stage;
- episode: per stage, the distance to the nearest token of the references against the mask;
- sum: the sum of both maps against the mask, and with --rank-pixels as a ranking of the pixels of one product;
- peak: the highest values of the zero-shot map, and of the sum of both maps, must rank the images of one product.

The projector of the last stage is the pool's own value path, so the map and the image feature learn the same weights.

    python train_clip.py OUT.pt DRAWN ... --phases '[[1000, 96, 20], [600, 128, 16]]'  # steps, pixels, products
"""

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import open_clip
import torch
import torch.distributed as dist
import torch.nn.functional as F
from batches import CAPTIONED, IMAGES, Batch, Batches
from draw import GOOD
from textures import SIDE
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.utils.data import DataLoader

from aprilcli.core.losses import dice_loss
from aprilcli.core.maps import upsample
from aprilcli.core.model_loading import STAGE_COUNT
from aprilcli.types import LOGIT_SCALE

AVERAGING_INTERVAL = 16  # steps after which the processes average their weights


def configuration(width: int, layers: list[int]) -> dict[str, Any]:
    """open_clip's model configuration: `width` and `layers` are those of the image tower's ResNet."""
    vision = {"layers": layers, "width": width, "head_width": 32, "patch_size": None, "image_size": SIDE}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    return {"embed_dim": 128, "vision_cfg": vision, "text_cfg": text}


class Model(nn.Module):
    """A CLIP with a linear layer per stage, and the offsets that turn distances into odds (for training only)."""

    def __init__(self, config: dict[str, Any]) -> None:
        """Initialize the weights for an open_clip configuration."""
        super().__init__()
        self.clip: Any = open_clip.model.CLIP(**copy.deepcopy(config), output_dict=False)
        # Without positions in the pool, a defect counts the same at any position and any image size.
        self.clip.visual.attnpool.positional_embedding.data.zero_()
        self.clip.visual.attnpool.positional_embedding.requires_grad_(False)
        base = config["vision_cfg"]["width"] * 4
        self.projector = nn.ModuleList(nn.Linear(base * 2**n, config["embed_dim"]) for n in range(STAGE_COUNT - 1))
        self.offset = nn.Parameter(torch.full((STAGE_COUNT,), 0.25))
        self.sum_offset = nn.Parameter(torch.tensor(1.5))
        self.clip.visual.to(memory_format=torch.channels_last)

    def projection(self, stage: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight [C, Cn] and bias [C] of a stage's projector, counted from 0; the last is the pool's value path."""
        if stage < STAGE_COUNT - 1:
            layer: Any = self.projector[stage]
            return layer.weight, layer.bias
        pool = self.clip.visual.attnpool
        return (
            pool.c_proj.weight @ pool.v_proj.weight,
            F.linear(pool.v_proj.bias, pool.c_proj.weight, pool.c_proj.bias),
        )

    def encode_images(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        """Image features [B, C], unit rows, the pool's attention [B, h4, w4], and four stages [B, Cn, hn, wn].

        Not `TorchImageEncoder`: training needs gradients and the attention.
        """
        visual = self.clip.visual
        x, stages = visual.stem(pixels), []
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            x = layer(x)
            stages.append(x)
        pool = visual.attnpool
        tokens = x.flatten(2).permute(2, 0, 1)
        tokens = torch.cat([tokens.mean(0, keepdim=True), tokens])
        pooled, attention = F.multi_head_attention_forward(
            tokens[:1], tokens, tokens, tokens.shape[-1], pool.num_heads, None,
            torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False, 0.0,
            pool.c_proj.weight, pool.c_proj.bias, need_weights=True, use_separate_proj_weight=True,
            q_proj_weight=pool.q_proj.weight, k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight,
        )  # fmt: skip
        assert attention is not None  # with need_weights
        attention = attention[:, 0, 1:].float().view(len(pixels), *x.shape[2:])
        return F.normalize(pooled[0].float(), dim=-1), attention, stages

    def encode_texts(self, tokens: torch.Tensor) -> torch.Tensor:
        """Text features [N, C], unit rows, of token numbers [N, context].

        Not `TextEncoder`: training needs gradients, and its sentences are already tokens.
        """
        clip, length = self.clip, int(tokens.argmax(-1).max()) + 1
        x = clip.token_embedding(tokens[:, :length]) + clip.positional_embedding[:length]
        x = clip.ln_final(clip.transformer(x, attn_mask=clip.attn_mask[:length, :length]))
        x = x[torch.arange(len(x)), tokens.argmax(-1)] @ clip.text_projection
        return F.normalize(x.float(), dim=-1)


def patch_logits(
    projection: tuple[torch.Tensor, torch.Tensor], features: torch.Tensor, direction: torch.Tensor
) -> torch.Tensor:
    """Anomalous minus normal logit of every patch; features [B, Cn, h, w], text direction [B, C], result [B, h, w]."""
    # As maps.anomaly_logits, but each image has its own text, and normalizing after the product is faster.
    with torch.autocast("cpu", torch.bfloat16):
        projected = F.linear(features.permute(0, 2, 3, 1).flatten(1, 2), *projection)
        along = torch.bmm(projected, direction[:, :, None])[..., 0].float()
    length = torch.linalg.vector_norm(projected, dim=-1).float()
    return (LOGIT_SCALE * along / length.clamp(min=1e-6)).unflatten(1, features.shape[2:])


def ranking(score: torch.Tensor, labels: torch.Tensor, sharpness: float) -> torch.Tensor:
    """Rank every anomalous image above every good image of its product; score and labels [P, n]."""
    gap = score[:, :, None] - score[:, None, :]
    pair = (labels[:, :, None] == 1) & (labels[:, None, :] == 0)
    return F.softplus(-sharpness * gap)[pair].mean() if pair.any() else score.sum() * 0


def pixel_ranking(maps: torch.Tensor, masks: torch.Tensor, draws: int = 192) -> torch.Tensor:
    """Rank anomalous pixels above normal pixels over all images of a product, as AUROC does; both [P, pixels]."""
    has_both = (masks.sum(1) > 0) & (masks.sum(1) < masks.shape[1])
    if not has_both.any():
        return maps.sum() * 0
    maps, masks = maps[has_both], masks[has_both]
    anomalous = maps.gather(1, torch.multinomial(masks, draws, replacement=True))
    normal = maps.gather(1, torch.multinomial(1 - masks, draws, replacement=True))
    return F.softplus(-3 * (anomalous[:, :, None] - normal[:, None, :])).mean()


def dense_loss(odds: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Focal and dice loss of one stage; odds are anomalous minus normal logits on the mask's grid."""
    # Focal loss from the logits, not losses.focal_loss: its gradient does not vanish where the model is far off.
    entropy = F.binary_cross_entropy_with_logits(odds, masks, reduction="none")
    focal = ((1 - torch.exp(-entropy)) ** 2 * entropy).mean()
    return 4 * focal + dice_loss(torch.sigmoid(odds), masks)


def balanced(odds: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy; all anomalous pixels together weigh half as much as all normal pixels together."""
    entropy = F.binary_cross_entropy_with_logits(odds, masks, reduction="none")
    anomalous = (entropy * masks).sum() / masks.sum().clamp(min=1)
    normal = (entropy * (1 - masks)).sum() / (1 - masks).sum().clamp(min=1)
    return (anomalous + 2 * normal) / 3


def peak(maps: torch.Tensor) -> torch.Tensor:
    """The mean of the six highest pixels [B]: a maximum whose gradient reaches more than one pixel."""
    return maps.flatten(1).topk(6).values.mean(1)


def losses(model: Model, batch: Batch, references: int, rank_pixels: bool) -> dict[str, torch.Tensor]:
    """All losses of one step, by name; the first `references` images of each product are its references."""
    count = len(batch.kinds)
    with torch.autocast("cpu", torch.bfloat16):
        image, attention, stages = model.encode_images(batch.pixels)
        text = model.encode_texts(torch.cat([batch.state_tokens.flatten(0, 2), batch.caption_tokens]))
    states = text[: count * 2 * batch.state_tokens.shape[2]].view(count, 2, -1, text.shape[-1])
    states = F.normalize(states.mean(2), dim=-1)
    direction = states[:, 1] - states[:, 0]  # [P, C]
    image_direction = direction.repeat_interleave(IMAGES, 0)
    labels, known = batch.labels.view(count, IMAGES), batch.labels >= 0
    result = {}

    odds = LOGIT_SCALE * (image * image_direction).sum(1)
    result["state"] = F.binary_cross_entropy_with_logits(odds[known], batch.labels[known].float())
    result["state rank"] = ranking(odds.view(count, -1), labels, 1.0)
    result["contrast"] = contrast(model, batch, image, text[-len(batch.caption_tokens) :])
    height, width = attention.shape[1:]
    on_defect = F.adaptive_avg_pool2d(batch.masks[:, None], (height, width))[:, 0] > 0.01
    share = (attention * on_defect).flatten(1).sum(1)[batch.labels == 1]
    result["attention"] = -(share + 1e-3).log().mean() if len(share) else attention.sum() * 0

    side = batch.masks.shape[-1]
    zero_shot = torch.zeros_like(batch.masks)
    result["dense"] = torch.zeros(())
    for n, features in enumerate(stages):
        patch_odds = upsample(patch_logits(model.projection(n), features, image_direction), side)
        result["dense"] = result["dense"] + dense_loss(patch_odds, batch.masks)
        zero_shot = zero_shot + torch.sigmoid(patch_odds)

    query = slice(references, IMAGES)
    masks = batch.masks.view(count, IMAGES, side, side)[:, query].flatten(0, 1)
    few_shot = torch.zeros_like(masks)
    result["episode"] = torch.zeros(())
    for n, features in enumerate(stages):
        distance = nearest(features, count, references)
        grid = distance.shape[-1]
        inside = F.adaptive_avg_pool2d(masks[:, None], grid)[:, 0]
        certain = (inside > 0.25) | (inside <= 0.02) if grid > 6 else (inside > 0.08) | (inside <= 0.005)
        truth = (inside > (0.25 if grid > 6 else 0.08)).float()
        # Odds grow by a factor of e for every 1/12 of distance; the offset is learned.
        episode_loss = balanced((12 * (distance - model.offset[n]))[certain], truth[certain])
        result["episode"] = result["episode"] + episode_loss
        few_shot = few_shot + upsample(distance, side)
    chosen = zero_shot.view(count, IMAGES, side, side)[:, query].flatten(0, 1)
    total = chosen + few_shot
    result["sum"] = balanced(3 * (total - model.sum_offset), masks)
    if rank_pixels:
        result["sum pixels"] = pixel_ranking(total.view(count, -1), masks.view(count, -1))
    result["peak"] = ranking(peak(zero_shot).view(count, -1), labels, 3.0)
    result["sum peak"] = ranking(
        torch.sigmoid(odds).view(count, -1)[:, query] + peak(total).view(count, -1), labels[:, query], 3.0
    )
    with torch.no_grad():
        result["state accuracy"] = ((odds > 0) == (batch.labels == 1))[known].float().mean()
    return result


LOSS_WEIGHTS = {
    "state": 1.0, "state rank": 0.8, "attention": 0.2, "contrast": 0.1, "dense": 0.4, "episode": 0.5, "sum": 1.0,
    "peak": 0.4, "sum peak": 0.6,
}  # fmt: skip
PIXEL_RANKING_WEIGHTS = {"sum": 0.6, "sum pixels": 1.0}  # with --rank-pixels, in place of those above


def contrast(model: Model, batch: Batch, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Images against captions, in both directions: a caption fits every image of its kind and state.

    Products whose name does not name their kind are left out.
    """
    last = slice(IMAGES - CAPTIONED, IMAGES)
    labels = batch.labels.view(-1, IMAGES)[:, last].flatten()
    image = image.view(-1, IMAGES, image.shape[-1])[:, last].flatten(0, 1)
    kinds = batch.kinds.repeat_interleave(CAPTIONED)
    used = (kinds >= 0) & (labels >= 0)
    if not used.any():
        return image.sum() * 0
    image, text = image[used], text[used]
    group = kinds[used] * 2 + labels[used]
    fits = (group[:, None] == group[None]).float()
    logits = model.clip.logit_scale.exp().clamp(max=LOGIT_SCALE) * image @ text.T
    by_image = -(logits.log_softmax(1) * fits).sum(1) / fits.sum(1)
    by_caption = -(logits.log_softmax(0) * fits).sum(0) / fits.sum(0)
    loss: torch.Tensor = (by_image.mean() + by_caption.mean()) / 2
    return loss


def nearest(features: torch.Tensor, count: int, references: int) -> torch.Tensor:
    """1 - the largest cosine of each query token to its product's reference tokens, [P·queries, h, w].

    Of the finest grid of the queries only every second row and column is used, from a random offset, to save time.
    """
    # As nearest_distance, but with gradients through the nearest token and in bfloat16, for several banks at once.
    images = features.permute(0, 2, 3, 1).unflatten(0, (count, IMAGES))
    bank = images[:, :references].flatten(1, 3)  # [P, tokens, Cn]
    bank = bank / bank.float().norm(dim=-1, keepdim=True).clamp(min=1e-6).to(bank.dtype)
    queries = images[:, references:]
    if queries.shape[2] >= 24:
        top, left = torch.randint(2, (2,)).tolist()
        queries = queries[:, :, top::2, left::2]
    rows = queries.flatten(1, 3)
    with torch.no_grad():
        best = torch.bmm(rows, bank.transpose(1, 2)).argmax(2, keepdim=True)
    along = (rows * bank.gather(1, best.expand(-1, -1, bank.shape[2]))).float().sum(-1)
    return (1 - along / rows.float().norm(dim=-1).clamp(min=1e-6)).view(-1, *queries.shape[2:4])


@torch.no_grad()
def average(model: Model, seconds: float) -> float:
    """Set the weights of all processes to their mean (local SGD); returns the mean of their running times."""
    tensors = [t for t in model.state_dict().values() if t.is_floating_point()]
    flat = torch.cat([*(t.flatten() for t in tensors), torch.tensor([seconds])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for tensor, mean in zip(tensors, flat[:-1].split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(mean.view_as(tensor))
    return float(flat[-1])


def save(path: Path, model: Model, config: dict[str, Any], step: int, images: int) -> None:
    """Write a checkpoint after `step` steps and `images` images."""
    torch.save({"model": model.state_dict(), "config": config, "steps": step, "images": images}, path)


def train(rank: int, options: argparse.Namespace) -> None:
    """Run one of the processes: train in phases, each at an image size; process 0 saves model and configuration."""
    torch.set_num_threads(1)
    peers = f"file://{options.out.resolve()}.peers"
    dist.init_process_group("gloo", init_method=peers, rank=rank, world_size=options.processes)
    torch.manual_seed(options.seed)
    config = configuration(options.width, options.layers)
    model = Model(config)
    if options.start:
        model.load_state_dict(torch.load(options.start)["model"])
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": 0.05},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    weights = LOSS_WEIGHTS | PIXEL_RANKING_WEIGHTS if options.rank_pixels else LOSS_WEIGHTS
    optimizer = torch.optim.AdamW(groups, lr=options.rate, betas=(0.9, 0.98), fused=True)
    start, step, images = time.monotonic(), 0, 0
    log: dict[str, float] = {}
    total = sum(steps for steps, _, _ in options.phases)
    done, ends = 0.0, 0.0  # shares of the whole training
    seconds = 0.0
    for phase, (steps, side, products) in enumerate(options.phases):
        seed = options.seed * 1000 + phase * 10 + rank
        ends += steps / total
        count = 10**9 if options.minutes else steps
        for batch in DataLoader(
            Batches(options.folders, products, side, seed, count, options.worn), batch_size=None, num_workers=1
        ):
            done = seconds / 60 / options.minutes if options.minutes else step / total
            if done >= ends or step == options.stop:
                break
            decayed = max(0.0, done - 1 + options.decay) / max(options.decay, 1e-9)
            rate = options.rate * min(1, (step + 1) / options.warm_up) * (0.5 + 0.5 * math.cos(math.pi * decayed))
            for group in optimizer.param_groups:
                group["lr"] = rate
            parts = losses(model, batch, 1 if torch.rand(()) < 0.7 else GOOD - 1, options.rank_pixels)
            optimizer.zero_grad()
            torch.stack([weight * parts[name] for name, weight in weights.items()]).sum().backward()
            norm = nn.utils.clip_grad_norm_(trained, 2.0)
            optimizer.step()
            if step % AVERAGING_INTERVAL == AVERAGING_INTERVAL - 1:
                seconds = average(model, time.monotonic() - start)
            step, images = step + 1, images + options.processes * len(batch.pixels)
            for name, value in parts.items():
                log[name] = 0.97 * log.get(name, value.item()) + 0.03 * value.item()
            if rank == 0 and (step % 50 == 0 or step == 5):
                shown = " ".join(f"{name} {value:.3f}" for name, value in log.items())
                print(f"{step} {done:.1%} {images} images {seconds:.0f} s |g| {norm:.1f} {shown}", flush=True)
            if rank == 0 and step % (20 * AVERAGING_INTERVAL) == 0:
                save(options.out, model, config, step, images)
        if rank == 0:
            print(f"phase {phase} ends after step {step}", flush=True)
    average(model, seconds)
    if rank == 0:
        save(options.out, model, config, step, images)
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("folders", type=Path, nargs="+", help="drawn sets")
    parser.add_argument("--phases", type=json.loads, default=[[1000, 96, 20], [600, 128, 16], [200, 192, 8]])
    parser.add_argument("--minutes", type=float, help="total time; the phases' steps then only divide it")
    parser.add_argument("--stop", type=int, help="stop after this step of the schedule")
    parser.add_argument("--start", type=Path, help="checkpoint whose weights to start from")
    parser.add_argument("--decay", type=float, default=1.0, help="last share of the steps, in which the rate falls")
    parser.add_argument("--worn", type=float, default=0, help="share of products with specks, streaks, uneven light")
    parser.add_argument("--rank-pixels", action="store_true", help="add the pixel ranking to the losses")
    parser.add_argument("--width", type=int, default=24)
    parser.add_argument("--layers", type=int, nargs=4, default=[1, 2, 3, 2])
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--warm-up", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2, help="each of one thread")
    chosen = parser.parse_args()
    Path(f"{chosen.out.resolve()}.peers").unlink(missing_ok=True)
    if chosen.processes == 1:
        train(0, chosen)
    else:
        spawn(train, (chosen,), chosen.processes)
